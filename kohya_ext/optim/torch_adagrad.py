"""The 32-bit accumulator on a CPU: torch's own fused Adagrad kernel, to which AdaCoor is equal there.

The kernel knows no bad gradients, so each slice is checked first, while it is on its way into the cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kohya_ext.elements import slices
from kohya_ext.optim.rule import Rule, constants
from kohya_ext.optim.sliced import SlicedStep

# measured: larger slices fall out of the cache between check and kernel, smaller ones cost calls
_SLICE = 1 << 18
_ONE = torch.ones(())


def available(rule: Rule, weights: Tensor, gradient: Tensor, vt: Tensor) -> bool:
    """Whether the kernel computes what the rule asks for."""
    same = weights.dtype == gradient.dtype == vt.dtype == torch.float32
    return same and weights.device.type == "cpu" and rule.vt_rate == 1 and hasattr(torch, "_fused_adagrad_")


def step_(sliced: SlicedStep, rule: Rule, weights: Tensor, gradient: Tensor, total: Tensor) -> None:
    """One step in place for flat tensors."""
    numbers = constants(rule, total.dtype, total.device)
    for start, length in slices(weights.numel(), _SLICE):
        part = slice(start, start + length)
        # a norm is finite only if every element and every square is
        if not math.isfinite(float(torch.linalg.vector_norm(gradient[part]))):
            sliced.step(rule, weights[part], gradient[part], {"vt": total[part]}, 0, 0)
            continue
        if rule.decay != 1:
            weights[part].mul_(rule.decay)
        torch._fused_adagrad_(
            [weights[part]],
            [gradient[part]],
            [total[part]],
            [_ONE],
            lr=-float(numbers.negative_lr),
            lr_decay=0.0,
            weight_decay=0.0,
            eps=float(numbers.added),
            maximize=rule.maximize,
        )
