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
import math

import torch
from torch import Tensor

from kohya_ext.optim.functional import Constants, Rule, averaged, round_weights
from kohya_ext.tensors.elements import kept

BLOCK = 256
# Codes in each decade below 1.
_CELLS = (60, 44, 33, 26, 20, 16, 13, 11, 10, 8, 7, 6)
# The code book that steps use. States of book 1 are converted.
BOOK = 2


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


def decode(codes: Tensor, scales: Tensor, book: int = BOOK) -> Tensor:
    """The sums that flat codes stand for, as float32."""
    return code_book(codes.device, book).index_select(0, codes.to(torch.int32)) * _spread(scales, codes.numel())


def encode(sums: Tensor, scales: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scales) of flat float32 sums >= 0. The upper 16 bits of `words` decide between neighbouring codes."""
    grown = _outgrown(sums, scales)
    book = code_book(sums.device)
    share = (sums / _spread(grown, sums.numel())).nan_to_num_(0.0)  # 0 / 0 in a block without any sum yet
    upper = _upper_neighbour(share, book)
    below, above = book.index_select(0, upper - 1), book.index_select(0, upper)
    chance = (words >> 16 & 0xFFFF).to(torch.float32) * 2.0**-16 + 2.0**-17
    codes = upper - 1 + ((share - below) > chance * (above - below)).to(upper.dtype)
    return torch.where(sums > 0, codes.clamp_(min=1), 0).to(torch.uint8), grown


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
    up = gradient.to(torch.float32)
    square = up * up
    usable = square < math.inf
    sums = decode(codes, scales)
    grown = torch.where(usable, sums + square * numbers.growth, sums)
    moved = weights.to(torch.float32) * numbers.decay
    towards = -up if rule.maximize else up
    if rule.extended:
        towards = towards * numbers.scale
    if momentum is None:
        moved = moved + numbers.negative_lr * towards / (torch.sqrt(grown) + numbers.added)
    else:
        after = averaged(momentum, towards / (torch.sqrt(grown) + numbers.added), numbers, usable, words)
        momentum.copy_(after)
        moved = moved + numbers.negative_lr * after.to(torch.float32)
    weights.copy_(torch.where(usable, round_weights(moved, rule, weights.dtype, words), weights))
    # an unchanged sum lies on a code and keeps it, so unusable gradients leave the state alone
    new_codes, new_scales = encode(grown, scales, words)
    codes.copy_(new_codes)
    scales.copy_(new_scales)
    return usable


def _upper_neighbour(share: Tensor, book: Tensor) -> Tensor:
    """The first code whose value is not below `share`, but at least 1: `torch.bucketize`, several times as fast.

    Within a decade the codes are equally spaced by their logarithm, so a guess by arithmetic is at most one off, and is
    then put right.
    """
    lowest = 10.0 ** -len(_CELLS)
    below = torch.log10(share.clamp(lowest, 1)).neg_()
    decade = below.floor().clamp_(0, len(_CELLS) - 1).to(torch.int32)
    slope, offset = (column.index_select(0, decade) for column in _decades(share.device))
    last = len(book) - 1
    upper = (offset - below * slope).floor_().clamp_(1, last).to(torch.int32)
    upper = upper + (book.index_select(0, upper) < share).to(torch.int32)
    upper = upper.clamp_(max=last)
    return (upper - (book.index_select(0, upper - 1) >= share).to(torch.int32)).clamp_(min=1)


@kept
def _decades(device: torch.device) -> tuple[Tensor, Tensor]:
    """(slope, offset) of each decade, so that the upper neighbour is about floor(offset + slope * log10(share))."""
    offsets = []
    for decade, cells in enumerate(_CELLS):
        lower = 1 + sum(_CELLS[decade + 1 :])  # codes below this decade, 0 among them
        offsets.append(lower + cells + 0.5 + decade * cells)
    return torch.tensor([float(cells) for cells in _CELLS], device=device), torch.tensor(offsets, device=device)


def _spread(scales: Tensor, numel: int) -> Tensor:
    return scales.repeat_interleave(BLOCK)[:numel]


def _outgrown(sums: Tensor, scales: Tensor) -> Tensor:
    """Scales doubled until no sum of the block is above its scale."""
    padded = sums.new_zeros(scales.numel() * BLOCK)
    padded[: sums.numel()] = sums
    largest = padded.view(-1, BLOCK).amax(dim=1)
    _, exponent = torch.frexp(largest)
    needed = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where(largest > scales, needed, scales)
