"""Stochastic rounding to 16 bits with random bits that depend on nothing but where and when they are used.

The bits are a hash of (seed, step, tensor index, element index). So they are the same on every rank and device, for
every way of slicing a tensor, in eager and compiled code, and after a resume, and no generator state has to be saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_NORMAL_HALF = 2.0**-14
_HALF_STEPS_PER_UNIT = 2.0**24
_WORD = 0xFFFFFFFF
_APART = -1640531535
# Of the two rounds of a multiply-xorshift finaliser, after shifts by 16 and 13; a shift by 16 ends it.
_FACTORS = (-2048144789, -1028477387)


def stream_key(seed: int, step: int, index: int, use: int = 0) -> int:
    """The key of the random bits of one tensor at one step.

    Args:
        seed: of the run; its lower 64 bits count.
        step: of this tensor.
        index: of the tensor among the parameters.
        use: tells streams apart that one tensor needs at one step.

    Returns:
        A signed 32-bit number.
    """
    key = _mix(seed & _WORD ^ _mix(seed >> 32 & _WORD))
    for part in (step, index, use):
        key = _mix(key ^ _mix(part + 0x9E3779B9 & _WORD))
    return _signed(key)


def random_words(key: int | Tensor, elements: Tensor, *, upper: bool = False) -> Tensor:
    """32 random bits for each element.

    Args:
        key: from `stream_key`, a number or a 0-dimensional int32 tensor.
        elements: int32 indices, wrapped beyond 2**31.
        upper: only the upper 16 are used. The last round, which changes the others alone, is omitted then.

    Returns:
        int32, in the shape of `elements`.
    """
    # int32 products wrap; `>>` keeps the sign, hence the masks
    word = elements * _APART + key
    shifted = (word >> 16).bitwise_and_(0xFFFF)
    word.bitwise_xor_(shifted).mul_(_FACTORS[0])
    _shift(word, 13, shifted).bitwise_and_(0x7FFFF)
    word.bitwise_xor_(shifted).mul_(_FACTORS[1])
    if upper:
        return word
    _shift(word, 16, shifted).bitwise_and_(0xFFFF)
    return word.bitwise_xor_(shifted)


def upper_halves(key: int, start: int, lanes: Tensor, word: Tensor, spare: Tensor) -> Tensor:
    """The upper 16 of the bits that `random_words` has for consecutive elements, as numbers, without the lower ones.

    Args:
        key: from `stream_key`.
        start: the number of the first element.
        lanes: from `keys_of_lanes`, one an element.
        word: overwritten, as long as `lanes`, and returned.
        spare: likewise, but not returned.
    """
    torch.add(lanes, _signed(key + start * _APART & _WORD), out=word)
    torch.bitwise_right_shift(word, 16, out=spare).bitwise_and_(0xFFFF)
    word.bitwise_xor_(spare).mul_(_FACTORS[0])
    torch.bitwise_right_shift(word, 13, out=spare).bitwise_and_(0x7FFFF)
    word.bitwise_xor_(spare).mul_(_FACTORS[1])
    # the last shift changes only the lower ones
    return word.bitwise_right_shift_(16).bitwise_and_(0xFFFF)


def keys_of_lanes(lanes: int, device: torch.device) -> Tensor:
    """What (lanes,) int32 numbers add to a key: `random_words(key + these, n)` are those of elements n, n + 1, ...

    In compiled code, one load instead of the arithmetic that numbers the elements of a vector one by one.
    """
    return torch.arange(lanes, dtype=torch.int32, device=device) * _APART


def more_words(words: Tensor) -> Tensor:
    """As many random bits again, made of those from `random_words` where the first are used up."""
    word = words * -1640531535 + 1013904223
    word = (word ^ (word >> 15 & 0x1FFFF)) * -2048144789
    return word ^ (word >> 16 & 0xFFFF)


def element_indices(start: int, length: int, device: torch.device) -> Tensor:
    """The int32 indices of elements start ... start + length - 1 of a tensor, wrapped beyond 2**31."""
    wrapped = (start + (1 << 31)) % (1 << 32) - (1 << 31)
    if wrapped + length <= 1 << 31:
        return torch.arange(wrapped, wrapped + length, dtype=torch.int32, device=device)
    return torch.arange(start, start + length, dtype=torch.int64, device=device).to(torch.int32)


def round_stochastically(values: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to 16 bits, up or down with the probability that makes the mean exact.

    Args:
        values: float32, all finite: callers mask infinities and NaN.
        words: one int32 a value, of which the lower 16 bits decide.
        dtype: bfloat16 or float16.

    Returns:
        The rounded values in `dtype`.

    Raises:
        TypeError: another dtype.

    Reference:
        Gupta et al.: Deep Learning with Limited Numerical Precision, 2015, https://arxiv.org/abs/1502.02551.
    """
    if dtype == torch.bfloat16:
        return as_bfloat16_at_random(values, words).to(torch.bfloat16)
    if dtype == torch.float16:
        normal = ((values.view(torch.int32) + (words & 0x1FFF)) & -0x2000).view(torch.float32)
        # below the smallest normal number the steps of float16 are equally wide
        chance = (words & 0xFFFF).to(torch.float32) * 2.0**-16 + 2.0**-17
        subnormal = torch.floor(values * _HALF_STEPS_PER_UNIT + chance) / _HALF_STEPS_PER_UNIT
        return torch.where(values.abs() < _SMALLEST_NORMAL_HALF, subnormal, normal).to(torch.float16)
    raise TypeError(f"stochastic rounding is to bfloat16 or float16, not {dtype}")


def as_bfloat16(values: Tensor) -> Tensor:
    """float32 values rounded to the nearest bfloat16, even on a tie, still as float32."""
    return values.to(torch.bfloat16).to(torch.float32)


def as_bfloat16_by_bits(values: Tensor) -> Tensor:
    """The same for finite values, by integers: in compiled code on a CPU several times as fast as converting twice."""
    bits = values.view(torch.int32)
    return (bits + ((bits >> 16 & 1) + 0x7FFF) & -0x10000).view(torch.float32)


def as_bfloat16_at_random(values: Tensor, words: Tensor) -> Tensor:
    """The values of `round_stochastically` to bfloat16, still as float32: without converting there and back."""
    return ((values.view(torch.int32) + (words & 0xFFFF)) & -0x10000).view(torch.float32)


def _shift(word: Tensor, by: int, into: Tensor) -> Tensor:
    return into.copy_(word).bitwise_right_shift_(by)


def _mix(word: int) -> int:
    """A 32-bit finaliser with full avalanche."""
    word ^= word >> 16
    word = word * 0x85EBCA6B & _WORD
    word ^= word >> 13
    word = word * 0xC2B2AE35 & _WORD
    return word ^ word >> 16


def _signed(word: int) -> int:
    """32 bits as a signed number."""
    return word - (1 << 32) if word >= 1 << 31 else word
