"""Swaps the EMA in for the raw weights and back, bit for bit, whatever happens.

Where weights and shadow have one dtype they are *exchanged*, slice by slice through the host, which needs no memory of
the size of the model anywhere. bfloat16 weights go into their float32 shadow bit by bit (see `pack`), which needs none
either. Otherwise the raw weights wait in host memory. An interruption between any two operations (Ctrl-C, a signal
handler that raises) leaves a state from which `bring_back` still gets everything right.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kohya_ext.tensors.elements import DEVICE_SLICE, flat_views, slices

_LOW = 0xFFFF
_HALF = 0x8000

Pair = tuple[Tensor, Tensor]


class _Slice(NamedTuple):
    pair: int
    start: int
    length: int


class _Crossing(NamedTuple):
    """Both sides of the slice that is being exchanged, so that a half-done exchange can be undone."""

    where: _Slice
    in_weights: Tensor
    in_shadow: Tensor


@dataclass
class _Progress:
    """How far an exchange got. Both fields change in one assignment of the whole object."""

    done: int
    crossing: _Crossing | None = None


class Swap:
    """A list of (weights, shadow) pairs that can be swapped in and brought back."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._exchanged = [pair for pair in pairs if _can_exchange(*pair)]
        self._copied = [pair for pair in pairs if not _can_exchange(*pair)]
        self._dtypes = [weights.dtype for weights, _ in self._exchanged]
        self._order = [
            _Slice(number, start, length)
            for number, (_, shadow) in enumerate(self._exchanged)
            for start, length in slices(shadow.numel(), DEVICE_SLICE)
        ]
        self._progress = _Progress(0)
        self._raw: list[Tensor | None] = [None] * len(self._copied)

    def put_in(self) -> None:
        """The EMA goes into the weights."""
        with torch.no_grad():
            for where in self._order:
                self._exchange(where, self._progress.done + 1, pack)
            for number, (weights, shadow) in enumerate(self._copied):
                self._raw[number] = weights.detach().to("cpu", copy=True)
                _copy_sliced(shadow, weights)

    def bring_back(self) -> None:
        """The raw weights return. May be called again after it was itself interrupted."""
        with torch.no_grad():
            self._undo_crossing()
            # the last first: of parameters with memory in common, the first has kept the raw weights
            for number, (weights, _) in reversed(list(enumerate(self._copied))):
                raw = self._raw[number]
                if raw is not None:
                    weights.data.copy_(raw)
                    self._raw[number] = None
            while self._progress.done:
                self._exchange(self._order[self._progress.done - 1], self._progress.done - 1, unpack)
        changed = [n for n, (weights, _) in enumerate(self._exchanged) if weights.dtype != self._dtypes[n]]
        if changed:
            warnings.warn(
                f"{len(changed)} parameters were cast while the EMA was swapped in; the EMA lost precision",
                RuntimeWarning,
                stacklevel=2,
            )

    def _exchange(self, where: _Slice, done_after: int, packed: Callable[[Tensor, Tensor], Pair]) -> None:
        weights, shadow = self._views(where)
        crossing = _Crossing(where, weights.to("cpu", copy=True), shadow.to("cpu", copy=True))
        self._progress = _Progress(self._progress.done, crossing)
        if self._dtypes[where.pair] == shadow.dtype:
            weights.copy_(crossing.in_shadow)
            shadow.copy_(crossing.in_weights)
        else:
            new_weights, new_shadow = packed(weights.to(self._dtypes[where.pair]), shadow.to(weights.device))
            weights.copy_(new_weights)
            shadow.copy_(new_shadow)
        self._progress = _Progress(done_after)

    def _undo_crossing(self) -> None:
        crossing = self._progress.crossing
        if crossing is not None:
            weights, shadow = self._views(crossing.where)
            weights.copy_(crossing.in_weights)
            shadow.copy_(crossing.in_shadow)
            self._progress = _Progress(self._progress.done)

    def _views(self, where: _Slice) -> tuple[Tensor, Tensor]:
        weights, shadow = self._exchanged[where.pair]
        views = flat_views(weights.data, shadow)
        if views is None:  # the layout changed while the EMA was in: change it back, values stay
            own = torch.empty_strided(shadow.shape, shadow.stride(), dtype=weights.dtype, device=weights.device)
            weights.data = own.copy_(weights.data)
            views = flat_views(weights.data, shadow) or [weights.data, shadow]
        return views[0][where.start : where.start + where.length], views[1][where.start : where.start + where.length]


def _can_exchange(weights: Tensor, shadow: Tensor) -> bool:
    alike = weights.dtype == shadow.dtype or packable(weights, shadow)
    return alike and flat_views(weights.data, shadow) is not None


def _copy_sliced(source: Tensor, target: Tensor) -> None:
    """Copy with casts, without temporary memory of the size of the tensor."""
    for part, goal in _slice_pairs(source, target.data):
        goal.copy_(part)


def _slice_pairs(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    views = flat_views(first, second)
    if views is None:
        yield first, second
        return
    for start, length in slices(first.numel(), DEVICE_SLICE):
        yield views[0][start : start + length], views[1][start : start + length]


def packable(weights: Tensor, shadow: Tensor) -> bool:
    """True for the one combination of dtypes that `pack` is for: bfloat16 weights, a float32 shadow."""
    return weights.dtype == torch.bfloat16 and shadow.dtype == torch.float32


def pack(weights: Tensor, shadow: Tensor) -> Pair:
    """(the EMA as bfloat16, a float32 tensor that holds the rest) from (raw weights, a finite average).

    A float32 is a bfloat16 with 16 more bits. While the EMA is in the weights (its upper bits, rounded), its shadow
    holds the raw weights in the upper half of each element and the EMA's own lower bits in the lower half. Rounding is
    half away from zero, not to even: that can be told from the lower bits alone, so the EMA comes back bit for bit too.
    """
    average, raw = shadow.view(torch.int32), weights.view(torch.int16).to(torch.int32)
    rounded = ((average + _HALF) >> 16).to(torch.int16).view(torch.bfloat16)
    return rounded, ((raw << 16) | (average & _LOW)).view(torch.float32)


def unpack(weights: Tensor, shadow: Tensor) -> Pair:
    """(raw weights, average) from what `pack` returned."""
    held = shadow.view(torch.int32)
    low = held & _LOW
    upper = weights.view(torch.int16).to(torch.int32) - (low >= _HALF).to(torch.int32)
    return (held >> 16).to(torch.int16).view(torch.bfloat16), ((upper << 16) | low).view(torch.float32)
