"""The eager path: one tensor after the other, slice by slice, with scratch memory that is reused.

Temporary memory does not depend on the size of the model, and on a CPU all of it stays in the cache. The commonest
case (float32 weights, no random bits) is written with preallocated outputs; it gives the bits of the formula in `rule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kohya_ext.optim import blockwise
from kohya_ext.optim.functional import Constants, Rule, constants, needs_words, step_full, step_half
from kohya_ext.optim.nonfinite import SkipCount
from kohya_ext.tensors.elements import slice_size, slices
from kohya_ext.tensors.rounding import element_indices, random_words, stream_key


class Scratch:
    """Reused buffers of one slice each."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, use: str, dtype: torch.dtype, like: Tensor) -> Tensor:
        """A buffer with as many elements as `like`, on its device. Valid until the same use is asked for again."""
        key = (use, dtype, like.device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < like.numel():
            buffer = self._buffers[key] = torch.empty(slice_size(like.device), dtype=dtype, device=like.device)
        return buffer[: like.numel()]

    def bytes(self) -> int:
        """What the buffers take."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())


class SlicedStep:
    """Steps flat tensors in place."""

    def __init__(self, skips: SkipCount) -> None:
        self.scratch = Scratch()
        self._skips = skips

    def step(
        self, rule: Rule, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int, index: int
    ) -> None:
        """One step of a flat tensor. step, index: what random bits depend on, see `kohya_ext.tensors.rounding`."""
        vt = state["vt"]
        key = stream_key(rule.seed, step, index) if needs_words(rule, weights.dtype, vt.dtype) else None
        numbers = constants(rule, vt.dtype, weights.device)
        for start, length in slices(weights.numel(), slice_size(weights.device)):
            end = start + length
            words = None if key is None else random_words(key, element_indices(start, length, weights.device))
            piece, grad = weights[start:end], gradient[start:end]
            if vt.dtype == torch.uint8:
                scales = state["scale"][start // blockwise.BLOCK : -(-end // blockwise.BLOCK)]
                usable = blockwise.step_(piece, grad, vt[start:end], scales, numbers, rule, words)
                self._skips.add(usable)
            else:
                self._step_slice(rule, numbers, piece, grad, vt[start:end], words)

    def _step_slice(
        self, rule: Rule, numbers: Constants, weights: Tensor, gradient: Tensor, vt: Tensor, words: Tensor | None
    ) -> None:
        quick = self._quick(weights, gradient, vt, words)
        if quick is not None and quick(rule, numbers, weights, gradient, vt):
            return
        formula = step_half if vt.dtype == torch.bfloat16 else step_full
        new = formula(weights, gradient, vt, numbers, rule, words)
        weights.copy_(new.weights)
        vt.copy_(new.state)
        self._skips.add(new.usable)

    def _quick(
        self, weights: Tensor, gradient: Tensor, vt: Tensor, words: Tensor | None
    ) -> Callable[[Rule, Constants, Tensor, Tensor, Tensor], bool] | None:
        if words is not None or weights.device.type != "cpu" or weights.dtype != gradient.dtype:
            return None
        if vt.dtype == torch.bfloat16:
            return self._quick_half if weights.dtype == torch.float32 else None
        return self._quick_full if vt.dtype == weights.dtype else None

    def _quick_half(self, rule: Rule, numbers: Constants, weights: Tensor, gradient: Tensor, vt: Tensor) -> bool:
        """Weights in float32, accumulator in bfloat16. False, and nothing done, where a gradient is not usable."""
        wide, narrow = self.scratch.take("wide", torch.float32, vt), self.scratch.take("narrow", torch.bfloat16, vt)
        torch.mul(gradient, gradient, out=wide)
        if not _all_finite(wide):
            return False
        narrow.copy_(wide.mul_(numbers.growth))
        vt.add_(narrow)
        torch.sqrt(vt, out=narrow)
        wide.copy_(narrow.add_(rule.eps))
        if numbers.negative_lr == -1:  # the sign changes no rounding, so both factors are one
            _move_(weights, gradient, wide, replace(numbers, negative_lr=-float(numbers.scale)), rule)
            return True
        scaled = torch.mul(gradient, numbers.scale, out=self.scratch.take("scaled", torch.float32, vt))
        _move_(weights, scaled, wide, numbers, rule)
        return True

    def _quick_full(self, rule: Rule, numbers: Constants, weights: Tensor, gradient: Tensor, total: Tensor) -> bool:
        """Weights and accumulator in float32, or both in float64."""
        wide = torch.mul(gradient, gradient, out=self.scratch.take("wide", total.dtype, total))
        if not _all_finite(wide):
            return False
        total.add_(wide if rule.vt_rate == 1 else wide.mul_(rule.vt_rate))
        torch.sqrt(total, out=wide).add_(numbers.added)
        _move_(weights, gradient, wide, numbers, rule)
        return True


def _move_(weights: Tensor, numerator: Tensor, denominator: Tensor, numbers: Constants, rule: Rule) -> None:
    if rule.decay != 1:
        weights.mul_(numbers.decay)
    lr = float(numbers.negative_lr)
    weights.addcdiv_(numerator, denominator, value=-lr if rule.maximize else lr)


def _all_finite(squares: Tensor) -> bool:
    """Whether all of these are finite and so small that their sum is. On a CPU, where reading it costs no wait."""
    return math.isfinite(float(squares.sum()))
