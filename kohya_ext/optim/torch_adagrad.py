"""The 32-bit accumulator on a CPU: torch's own fused Adagrad kernel, to which AdaCoor is equal there.

The kernel knows no bad gradients. So a tensor is walked in slices: each gradient slice is checked, which brings it into
the cache, and the kernel finds it there. The gradient makes no second trip to memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from kohya_ext.optim.eager import Job, Kind, SlicedStep
from kohya_ext.optim.functional import Rule, constants

# Measured: larger slices fall out of the cache between check and kernel, smaller ones cost calls and waits for threads.
_SLICE = 1 << 21
# Below this size calls cost more than arithmetic: such tensors are checked together and stepped in one call.
SMALL = 1 << 15
_ONE = torch.ones(())

_Kernel = Callable[[list[Tensor], list[Tensor], list[Tensor]], None]


def available(rule: Rule, kind: Kind) -> bool:
    """Whether the kernel computes what the rule asks for, for tensors of this kind (none with a pending sign)."""
    weights, gradient, vt, device = kind
    same = weights == gradient == vt == torch.float32
    return (
        same and device.type == "cpu" and rule.vt_rate == 1 and not rule.extended and hasattr(torch, "_fused_adagrad_")
    )


def step_(sliced: SlicedStep, rule: Rule, weights: Tensor, gradient: Tensor, total: Tensor) -> None:
    """One step in place for flat tensors."""
    kernel = _kernel(rule, weights.device)
    parts: Iterable[tuple[Tensor, Tensor, Tensor]] = [(weights, gradient, total)]
    if weights.numel() > _SLICE:
        parts = zip(weights.split(_SLICE), gradient.split(_SLICE), total.split(_SLICE), strict=True)
    for own, newest, sums in parts:
        if usable(newest):
            kernel([own], [newest], [sums])
        else:
            sliced.step(rule, own, newest, {"vt": sums}, 0, 0)


def step_many(sliced: SlicedStep, rule: Rule, jobs: Sequence[Job]) -> None:
    """One step in place for flat tensors that are small, a slice's worth of them at a time."""
    batch: list[Job] = []
    size = 0
    for job in jobs:
        if size + job.weights.numel() > _SLICE:
            _step_batch(sliced, rule, batch)
            batch, size = [], 0
        batch.append(job)
        size += job.weights.numel()
    _step_batch(sliced, rule, batch)


def usable(gradient: Tensor) -> bool:
    """Whether every element of a flat gradient and every square is finite: only then is the sum of squares.

    A sum that overflows although no square does sends the slice down the careful path, which takes longer and no harm.
    """
    return math.isfinite(torch.dot(gradient, gradient).item())


def _step_batch(sliced: SlicedStep, rule: Rule, jobs: Sequence[Job]) -> None:
    if not jobs:
        return
    gradients = [job.gradient for job in jobs]
    if usable(torch.cat(gradients)):
        kernel = _kernel(rule, gradients[0].device)
        kernel([job.weights for job in jobs], gradients, [job.state["vt"] for job in jobs])
        return
    for job in jobs:
        step_(sliced, rule, job.weights, job.gradient, job.state["vt"])


@functools.lru_cache(maxsize=64)
def _kernel(rule: Rule, device: torch.device) -> _Kernel:
    """A step of (weights, gradients, accumulators) by torch's kernel: decay, then Adagrad."""
    numbers = constants(rule, torch.float32, device)
    lr, eps = -float(numbers.negative_lr), float(numbers.added)

    def step(weights: list[Tensor], gradients: list[Tensor], totals: list[Tensor]) -> None:
        if rule.decay != 1:
            torch._foreach_mul_(weights, rule.decay)
        torch._fused_adagrad_(
            weights,
            gradients,
            totals,
            [_ONE] * len(weights),
            lr=lr,
            lr_decay=0.0,
            weight_decay=0.0,
            eps=eps,
            maximize=rule.maximize,
        )

    return step
