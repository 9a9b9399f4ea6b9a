"""Eager steps on a CPU whose sum is rounded at random: the formulas of `functional` and `blockwise`, in place.

Written as formulas they take some fifty operations a slice, each of which makes a tensor and half of which convert or
choose. Here the buffers are kept, choices are made by sign bits, and gradients that cannot be used are left to the
formula. The bits are the same.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from kohya_ext.optim import blockwise
from kohya_ext.optim.functional import Constants, Rule
from kohya_ext.tensors.elements import is_fake


class ReusedBuffers(Protocol):
    """Reused memory by its use."""

    def take(self, use: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """At least as long as a slice."""
        ...


def step_(
    buffers: ReusedBuffers,
    rule: Rule,
    numbers: Constants,
    weights: Tensor,
    gradient: Tensor,
    sums: Tensor,
    scales: Tensor | None,
    words: Tensor,
) -> int:
    """One step in place of a flat slice, without momentum, as far as there is a quick one.

    Args:
        buffers: overwritten.
        rule: the settings of the group.
        numbers: of `rule`, see `functional.constants`.
        weights: at most a slice of them.
        gradient: as long as they are.
        sums: the accumulator, from the start of a block on if it is one of codes.
        scales: those of the codes.
        words: random bits, one int32 an element.

    Returns:
        How many elements, from the first on, have been stepped: all of them, the full blocks, or none.
    """
    if weights.device.type != "cpu" or is_fake(weights) or not weights.dtype == gradient.dtype == torch.float32:
        return 0
    if isinstance(numbers.growth, Tensor) and numbers.growth.dim():  # of several gathered tensors
        return 0
    if scales is not None:
        return _step_codes(buffers, rule, numbers, weights, gradient, sums, scales, words)
    if sums.dtype == torch.bfloat16 and rule.stochastic_state:
        return _step_half(buffers, rule, numbers, weights, gradient, sums, words)
    return 0


def _step_half(
    buffers: ReusedBuffers,
    rule: Rule,
    numbers: Constants,
    weights: Tensor,
    gradient: Tensor,
    sums: Tensor,
    words: Tensor,
) -> int:
    """With a bfloat16 accumulator. Returns 0, and has done nothing, where a gradient cannot be used."""
    wide, held = (_taken(buffers, use, torch.float32, weights) for use in ("wide", "held"))
    bits, narrow = _taken(buffers, "bits", torch.int32, weights), _taken(buffers, "narrow", torch.bfloat16, weights)
    if not _squared(gradient, wide):
        return 0
    wide.mul_(float(numbers.growth)).add_(held.copy_(sums))
    wide.view(torch.int32).add_(_upper_half(words, bits)).bitwise_and_(-0x10000)
    sums.copy_(wide)
    held.copy_(torch.sqrt(sums, out=narrow).add_(float(numbers.added)))
    _move(rule, numbers, weights, torch.mul(gradient, float(numbers.scale), out=wide), held)
    return weights.numel()


def _step_codes(
    buffers: ReusedBuffers,
    rule: Rule,
    numbers: Constants,
    weights: Tensor,
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    words: Tensor,
) -> int:
    """Full blocks with an accumulator of 8 bits. Returns how many elements these have, or 0 as above."""
    whole = weights.numel() // blockwise.BLOCK
    length = whole * blockwise.BLOCK
    weights, gradient, codes, words = (flat[:length] for flat in (weights, gradient, codes, words))
    scales = scales[:whole]
    wide, held, third = (_taken(buffers, use, torch.float32, weights) for use in ("wide", "held", "third"))
    bits, upper, positive = (_taken(buffers, use, torch.int32, weights) for use in ("bits", "upper", "positive"))
    if not whole or not _squared(gradient, wide):
        return 0
    look = blockwise.tables(weights.device)
    torch.index_select(look.values, 0, bits.copy_(codes), out=held)
    held.view(whole, -1).mul_(scales[:, None])
    held.add_(wide.mul_(float(numbers.growth)))
    grown = blockwise.outgrown(held.view(whole, -1).amax(dim=1), scales)
    torch.sqrt(held, out=wide).add_(float(numbers.added))
    numerator = torch.mul(gradient, float(numbers.scale), out=third) if rule.extended else gradient
    _move(rule, numbers, weights, numerator, wide)

    torch.neg(held.view(torch.int32), out=positive).bitwise_right_shift_(31)  # all bits set for a sum above 0
    held.view(whole, -1).div_(torch.where(grown > 0, grown, 1.0)[:, None])
    held.clamp_(max=1.0)
    torch.bitwise_right_shift(held.view(torch.int32), blockwise.DROPPED, out=bits)
    torch.index_select(look.upper, 0, bits, out=upper)
    torch.index_select(look.values, 0, upper, out=wide)
    upper.sub_(_negative(wide.sub_(held), bits))
    held.sub_(torch.index_select(look.below, 0, upper, out=wide))
    torch.index_select(look.gap, 0, upper, out=wide)
    wide.mul_(third.copy_(_upper_half(words, bits)).add_(0.5)).sub_(held)
    upper.sub_(1).sub_(_negative(wide, bits)).bitwise_and_(positive)
    codes.copy_(upper)
    scales.copy_(grown)
    return length


def _taken(buffers: ReusedBuffers, use: str, dtype: torch.dtype, like: Tensor) -> Tensor:
    return buffers.take(use, dtype, like.device)[: like.numel()]


def _squared(gradient: Tensor, into: Tensor) -> bool:
    """Whether all squares, which are put there, are finite."""
    return math.isfinite(torch.mul(gradient, gradient, out=into).sum().item())


def _upper_half(words: Tensor, into: Tensor) -> Tensor:
    return torch.bitwise_right_shift(words, 16, out=into).bitwise_and_(0xFFFF)


def _negative(values: Tensor, into: Tensor) -> Tensor:
    """-1 where a value is below 0, else 0. No value is -0."""
    return torch.bitwise_right_shift(values.view(torch.int32), 31, out=into)


def _move(rule: Rule, numbers: Constants, weights: Tensor, numerator: Tensor, divisor: Tensor) -> None:
    if rule.decay != 1:
        weights.mul_(rule.decay)
    rate = float(numbers.negative_lr)
    weights.addcdiv_(numerator, divisor, value=-rate if rule.maximize else rate)
