"""Eager steps on a CPU whose sum is rounded at random: the formulas of `functional` and `blockwise`, in place.

Written as formulas they take some fifty operations a slice, each of which makes a tensor and half of which convert or
choose. Here the buffers are kept, choices are made by sign bits, and gradients that cannot be used are left to the
formula. The bits are the same.

torch looks up in a table with one thread only, and takes as long for it as for five other operations. So codes are
looked up two at a time, and the two numbers of a code as one.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kohya_ext.optim import blockwise
from kohya_ext.optim.functional import Constants, Rule
from kohya_ext.tensors.elements import CPU_SLICE, is_fake, kept
from kohya_ext.tensors.rounding import keys_of_lanes, upper_halves

_LARGEST_SCALE = 2.0**127
_CPU = torch.device("cpu")


class RandomBits(NamedTuple):
    """The random bits of consecutive elements, not made yet.

    key: from `stream_key`. start: the number of the first element.
    """

    key: int
    start: int


class PairTables(NamedTuple):
    """Two float32 as one int64 each.

    values: by two codes, their values. neighbours: by code, `below` and, in the upper half, `gap` of `CodeTables`.
    """

    values: Tensor
    neighbours: Tensor


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
    words: Tensor | RandomBits,
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
        words: random bits, one int32 an element, or which they are.

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
    words: Tensor | RandomBits,
) -> int:
    """With a bfloat16 accumulator. Returns 0, and has done nothing, where a gradient cannot be used."""
    wide, held = (_taken(buffers, use, torch.float32, weights) for use in ("wide", "held"))
    bits, spare = (_taken(buffers, use, torch.int32, weights) for use in ("bits", "spare"))
    narrow = _taken(buffers, "narrow", torch.bfloat16, weights)
    if not math.isfinite(torch.mul(gradient, gradient, out=wide).sum().item()):
        return 0
    wide.mul_(float(numbers.growth)).add_(held.copy_(sums))
    wide.view(torch.int32).add_(_upper_half(words, bits, spare)).bitwise_and_(-0x10000)
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
    words: Tensor | RandomBits,
) -> int:
    """Full blocks with an accumulator of 8 bits. Returns how many elements these have, or 0 as above."""
    whole = weights.numel() // blockwise.BLOCK
    length = whole * blockwise.BLOCK
    weights, gradient, codes, scales = weights[:length], gradient[:length], codes[:length], scales[:whole]
    if not whole or codes.storage_offset() % 2:  # such codes cannot be read as pairs
        return 0
    wide, held, third = (_taken(buffers, use, torch.float32, weights) for use in ("wide", "held", "third"))
    pairs = _taken(buffers, "bits", torch.int32, weights)[: length // 2]
    pairs.copy_(codes.view(torch.int16)).bitwise_and_(0xFFFF)
    torch.index_select(_pair_tables().values, 0, pairs, out=held.view(torch.int64))
    held.view(whole, -1).mul_(scales[:, None])
    torch.mul(gradient, gradient, out=wide)
    held.add_(wide if numbers.growth == 1 else wide.mul_(float(numbers.growth)))
    largest = held.view(whole, -1).amax(dim=1)
    if not largest.amax().item() <= _LARGEST_SCALE:  # false for NaN too; what is not finite has spread to here
        return 0
    torch.sqrt(held, out=wide).add_(float(numbers.added))
    numerator = torch.mul(gradient, float(numbers.scale), out=third) if rule.extended else gradient
    _move(rule, numbers, weights, numerator, wide)
    grown = blockwise.outgrown(largest, scales)
    codes.copy_(_encoded(buffers, held, grown, words))
    scales.copy_(grown)
    return length


def _encoded(buffers: ReusedBuffers, sums: Tensor, grown: Tensor, words: Tensor | RandomBits) -> Tensor:
    """The codes, in int32, of the sums of full blocks with these scales. The sums are overwritten."""
    wide, third = (_taken(buffers, use, torch.float32, sums) for use in ("wide", "third"))
    bits, lower, spare = (_taken(buffers, use, torch.int32, sums) for use in ("bits", "lower", "spare"))
    both = _taken(buffers, "both", torch.int64, sums)
    positive = None
    if not sums.amin().item() > 0:
        positive = _taken(buffers, "positive", torch.int32, sums)
        torch.neg(sums.view(torch.int32), out=positive).bitwise_right_shift_(31)  # all bits set for a sum above 0
    share = sums
    share.view(len(grown), -1).div_(torch.where(grown > 0, grown, 1.0)[:, None])
    torch.bitwise_right_shift(share.view(torch.int32), blockwise.DROPPED, out=bits)
    torch.index_select(blockwise.tables(_CPU).lower, 0, bits, out=lower)
    lower.add_(torch.bitwise_and(share.view(torch.int32), blockwise.REST, out=bits))
    lower.bitwise_right_shift_(blockwise.DROPPED)
    torch.index_select(_pair_tables().neighbours, 0, lower, out=both)
    above = share.sub_(_narrow(both, wide))
    gap = _narrow(both.bitwise_right_shift_(32), wide)
    excess = gap.mul_(third.copy_(_upper_half(words, bits, spare)).add_(0.5)).sub_(above)
    # minus 1 where it is below 0, else 0; it is never -0
    lower.sub_(torch.bitwise_right_shift(excess.view(torch.int32), 31, out=bits))
    return lower if positive is None else lower.bitwise_and_(positive)


@kept
def _pair_tables() -> PairTables:
    values, _, below, gap = blockwise.tables(_CPU)
    codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.uint8)
    lower, upper = (column.view(torch.int32).to(torch.int64) for column in (below, gap))
    return PairTables(
        values.index_select(0, codes.to(torch.int32)).view(torch.int64), lower.bitwise_and_(0xFFFFFFFF) + (upper << 32)
    )


@kept
def _lanes() -> Tensor:
    return keys_of_lanes(CPU_SLICE, _CPU)


def _taken(buffers: ReusedBuffers, use: str, dtype: torch.dtype, like: Tensor) -> Tensor:
    return buffers.take(use, dtype, like.device)[: like.numel()]


def _upper_half(words: Tensor | RandomBits, into: Tensor, spare: Tensor) -> Tensor:
    """The upper 16 of the random bits of as many elements as there is room for."""
    if isinstance(words, Tensor):
        return torch.bitwise_right_shift(words[: into.numel()], 16, out=into).bitwise_and_(0xFFFF)
    return upper_halves(words.key, words.start, _lanes()[: into.numel()], into, spare)


def _narrow(both: Tensor, into: Tensor) -> Tensor:
    """The float32 in the lower half of each int64."""
    into.view(torch.int32).copy_(both)
    return into


def _move(rule: Rule, numbers: Constants, weights: Tensor, numerator: Tensor, divisor: Tensor) -> None:
    if rule.decay != 1:
        weights.mul_(rule.decay)
    rate = float(numbers.negative_lr)
    weights.addcdiv_(numerator, divisor, value=-rate if rule.maximize else rate)
