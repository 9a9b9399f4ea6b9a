"""Slow, obvious twins of AdaCoor that the tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def published_step(weights: Tensor, gradient: Tensor, vt: Tensor, eps: float = 1e-8) -> None:
    """One step of the published optimizer in place: float32 weights, bfloat16 `vt`, the formula run eagerly."""
    rounded = torch.tensor(eps).to(torch.bfloat16).to(torch.float32)
    vt.add_((rounded * gradient**2).to(torch.bfloat16))
    denominator = vt.sqrt().add_(eps).to(torch.float32)
    weights.addcdiv_(rounded * gradient, denominator, value=-1)


class Exact:
    """AdaCoor in float64, from its definition as Adagrad with learning rate lr * sqrt(eps) and epsilon sqrt(eps)."""

    def __init__(self, weights: Tensor, eps: float = 1e-8, vt_rate: float = 1.0, weight_decay: float = 0.0) -> None:
        self.weights = weights.double().clone()
        self.total = torch.zeros_like(self.weights)
        self.eps, self.vt_rate, self.weight_decay = eps, vt_rate, weight_decay

    def step(self, gradient: Tensor, lr: float = 1.0) -> None:
        """One step with a gradient of any precision."""
        gradient = gradient.double()
        self.total += self.vt_rate * gradient**2
        rate = lr * self.eps**0.5
        self.weights *= 1 - rate * self.weight_decay
        self.weights -= rate * gradient / (self.total.sqrt() + self.eps**0.5)


def decades(shape: tuple[int, ...], generator: torch.Generator, low: float = -9, high: float = 3) -> Tensor:
    """Random gradients whose magnitudes spread evenly over 12 powers of ten."""
    exponent = low + (high - low) * torch.rand(shape, generator=generator)
    return torch.randn(shape, generator=generator) * 10**exponent
