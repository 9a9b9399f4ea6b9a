"""The 8-bit accumulator: one code an element, one scale a block of 256.

The sums of one block differ by the square of what its gradients differ by: 4 decades of gradients are 8 of sums, and
new sums come from below. So the code book has 12 decades, logarithmic within each, finest at the top (3.9 % from code
to code) and coarser from decade to decade. bitsandbytes' dynamic code book, the one of states from kohya_ext 0.2, ends
after 7, and what was smaller was held as up to 80 times what it is.

The scale of a block is a power of two that only doubles, when the block outgrows it: so a value that does not change
stays exactly where it is, step after step, instead of being rounded again each time its neighbour grows. And a value is
rounded to one of its two neighbouring codes at random, so that its expected value is exact; only a positive sum never
becomes code 0, for a sum of 0 means a step as large as the gradient itself.

Reference: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, 2022, https://arxiv.org/abs/2110.02861.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from kohya_ext.optim.functional import Constants, Rule, averaged, move, round_weights, usable_part
from kohya_ext.tensors.elements import kept

BLOCK = 256
# Codes in each decade below 1.
_CELLS = (60, 44, 33, 26, 20, 16, 13, 11, 10, 8, 7, 6)
# What codes mean and how they are kept, today. 1: another code book, flat. 2: this one, flat. 3: in the shape of the
# weights, so that a state of other weights with as many elements is known for what it is.
BOOK = 3
# What is left of a float32's bits without so many tells values apart by 1.6 %, less than the least distance between
# two codes. REST: those bits.
DROPPED = 17
REST = (1 << DROPPED) - 1
_ONE = 127 << 23  # the bits of 1.0


class CodeTables(NamedTuple):
    """What encoding looks up, on one device.

    values: the code book. lower: by the leading bits of a float32 from 0 to 1, see `lower_neighbour`. below: by code
    up to 254, its value; for code 0, so that no positive sum becomes 0, less than any sum. gap: the distance to the
    value of the next code, by 2**16.
    """

    values: Tensor
    lower: Tensor
    below: Tensor
    gap: Tensor


class Coded(NamedTuple):
    """What a step makes of blocks; `momentum` where there is one."""

    weights: Tensor
    codes: Tensor
    scales: Tensor
    usable: Tensor
    momentum: Tensor | None


def code_values(book: int = BOOK) -> list[float]:
    """The 256 values of a code book in ascending order. 1: bitsandbytes' dynamic one without signs."""
    values = [0.0, 1.0]
    if book == 1:
        for decade in range(7):
            cells = 2 ** (decade + 1)
            edges = [0.1 + 0.9 * cell / cells for cell in range(cells + 1)]
            size = 10.0 ** (decade - 6)
            values += [size * (low + high) / 2 for low, high in itertools.pairwise(edges)]
    else:
        for decade, cells in enumerate(_CELLS):
            values += [10.0 ** -(decade + (cell + 0.5) / cells) for cell in range(cells)]
    return sorted(values)


@kept
def code_book(device: torch.device, book: int = BOOK) -> Tensor:
    """A code book as float32 on a device."""
    return torch.tensor(code_values(book), dtype=torch.float32, device=device)


def blocks_of(numel: int) -> int:
    """How many blocks, and so scales, a tensor has."""
    return -(-numel // BLOCK)


@kept
def tables(device: torch.device) -> CodeTables:
    """The tables on a device."""
    values = torch.tensor(code_values(), dtype=torch.float32)
    cells = torch.arange((_ONE >> DROPPED) + 1, dtype=torch.int32)
    first = torch.bucketize((cells << DROPPED).view(torch.float32), values).clamp_(1, len(values) - 1)
    bits = values.view(torch.int32).index_select(0, first)
    within = torch.where(bits >> DROPPED == cells, bits & REST, REST)
    lower = (first.to(torch.int32) - 1 << DROPPED) + (REST - within)
    below, gap = values[:-1].clone(), values.diff() * 2.0**-16
    below[0] = -1.0
    return CodeTables(*(column.to(device) for column in (values, lower, below, gap)))


def decode(codes: Tensor, scales: Tensor, book: int = BOOK) -> Tensor:
    """The sums that codes stand for, flat, as float32."""
    values = code_book(codes.device, book).index_select(0, codes.reshape(-1).to(torch.int32))
    return values * scales.repeat_interleave(BLOCK)[: codes.numel()]


def encode(sums: Tensor, scales: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scales) of flat float32 sums >= 0. The upper 16 bits of `words` decide between neighbouring codes."""
    blocks, bits = (in_blocks(flat) for flat in (sums, words))
    codes, grown = encode_blocks(blocks, scales, bits, tables(sums.device))
    return codes.view(-1)[: sums.numel()], grown


def encode_blocks(sums: Tensor, scales: Tensor, words: Tensor, look: CodeTables) -> tuple[Tensor, Tensor]:
    """The same of (blocks, BLOCK)."""
    grown = outgrown(sums.amax(dim=1), scales)
    share = sums / torch.where(grown > 0, grown, 1.0)[:, None]
    share = torch.where(share < 1, share, 1.0)  # a sum beyond float32 is held as the largest
    lower = lower_neighbour(share, look)
    chance = (words >> 16 & 0xFFFF).to(torch.float32) + 0.5
    up = share - _look_up(look.below, lower) > chance * _look_up(look.gap, lower)
    return torch.where(sums > 0, lower + up.to(torch.int32), 0).to(torch.uint8), grown


def step_blocks(
    weights: Tensor,
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    numbers: Constants,
    rule: Rule,
    words: Tensor,
    momentum: Tensor | None,
    look: CodeTables,
) -> Coded:
    """One step of (blocks, BLOCK) tensors; scales: (blocks,). Compiled as well, see `compiled_codes`."""
    up, usable = usable_part(gradient, torch.float32, rule)
    grown = _look_up(look.values, codes.to(torch.int32)) * scales[:, None] + up * up * numbers.growth
    numerator = up * numbers.scale if rule.extended else up
    divisor = torch.sqrt(grown) + numbers.added
    mean = None if momentum is None else averaged(momentum, numerator / divisor, numbers, usable, words)
    moved = move(weights.to(torch.float32), numerator, divisor, mean, numbers, rule, usable)
    # an unchanged sum lies on a code and keeps it, so unusable gradients leave the state alone
    new_codes, new_scales = encode_blocks(grown, scales, words, look)
    return Coded(round_weights(moved, rule, weights.dtype, words), new_codes, new_scales, usable, mean)


def step_(
    weights: Tensor,
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    numbers: Constants,
    rule: Rule,
    words: Tensor | None,
    momentum: Tensor | None = None,
) -> Tensor:
    """One step in place for flat tensors that begin at the start of a block. Returns which gradients were usable."""
    assert words is not None
    flat = [weights, gradient, codes, words, *([] if momentum is None else [momentum])]
    table, newest, held, bits, *mean = (in_blocks(one) for one in flat)
    look = tables(weights.device)
    new = step_blocks(table, newest, held, scales, numbers, rule, bits, mean[0] if mean else None, look)
    length = weights.numel()
    weights.copy_(new.weights.view(-1)[:length])
    codes.copy_(new.codes.view(-1)[:length])
    scales.copy_(new.scales)
    if momentum is not None and new.momentum is not None:
        momentum.copy_(new.momentum.view(-1)[:length])
    return new.usable.view(-1)[:length]


def in_blocks(flat: Tensor) -> Tensor:
    """A flat tensor as (blocks, BLOCK): a view, or, where the last block is not full, a copy with zeros at its end."""
    length = flat.numel()
    missing = -length % BLOCK
    return (torch.cat([flat, flat.new_zeros(missing)]) if missing else flat).view(-1, BLOCK)


def lower_neighbour(share: Tensor, look: CodeTables) -> Tensor:
    """The last code whose value is below `share` (from 0 to 1), at most 254, as int32; 0 for a share of 0 as well.

    `torch.bucketize`, several times as fast: the values whose leading bits are the same have no more than one code's
    value among them. So the table has, above DROPPED bits, the code for those up to that one, and in these bits what
    takes a carry from the rest of those beyond it.
    """
    bits = share.view(torch.int32)
    return _look_up(look.lower, bits >> DROPPED) + (bits & REST) >> DROPPED


def outgrown(largest: Tensor, scales: Tensor) -> Tensor:
    """The scales of blocks with these largest sums: the next power of two where it is above the scale."""
    # by the exponent in the bits: at least 2**-126, at most 2**127
    exponent = (largest.view(torch.int32) >> 23).clamp(0, 253)
    return torch.where(largest > scales, (exponent + 1 << 23).view(torch.float32), scales)


def _look_up(column: Tensor, places: Tensor) -> Tensor:
    return column.index_select(0, places.reshape(-1)).view(places.shape)
