"""A zoo of quadratics: f(x) = 1/2 (x - x*)' H (x - x*), with noise in the gradients.

The start lies 0.01 from the minimum in each coordinate (root mean square), which is how far a fine-tune moves weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.study.candidates import Make

SIZE = 128
STEPS = 1000
DISTANCE = 0.01


@dataclass(frozen=True)
class Quadratic:
    """condition: largest by smallest curvature (the largest is 1). noise: of each gradient element.

    rotated: curvature lies across the axes. seen: share of coordinates that have a gradient in a step.
    """

    name: str
    condition: float
    noise: float = 0.0
    rotated: bool = False
    seen: float = 1.0


ZOO = (
    Quadratic("round", 1),
    Quadratic("ill-conditioned", 1e4),
    Quadratic("rotated", 1e3, rotated=True),
    Quadratic("noisy", 1e2, noise=1e-3),
    Quadratic("rare gradients", 1e2, seen=0.1),
)


def decline(problem: Quadratic, make: Make, rate: float, seed: int) -> float:
    """Final f by initial f, at least 1e-12; inf when it has grown beyond all bounds."""
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.logspace(0, -torch.tensor(problem.condition).log10().item(), SIZE)
    turn = torch.eye(SIZE)
    if problem.rotated:
        turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator))[0]
    hessian = (turn * curvature) @ turn.T
    x = nn.Parameter(DISTANCE * torch.randn(SIZE, generator=generator))
    optimizer = make([x], rate)
    first = _value(hessian, x)
    for _ in range(STEPS):
        gradient = hessian @ x.detach() + problem.noise * torch.randn(SIZE, generator=generator)
        if problem.seen < 1:
            gradient = gradient * (torch.rand(SIZE, generator=generator) < problem.seen)
        x.grad = gradient
        optimizer.step()
    last = _value(hessian, x)
    return max(last / first, 1e-12) if last < 1e6 * first else float("inf")


def _value(hessian: Tensor, x: Tensor) -> float:
    point = x.detach()
    return float(0.5 * point @ hessian @ point)
