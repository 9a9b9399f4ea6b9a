"""The arithmetic of one update: shadow = lerp(shadow, weights, w), never taking in a non-finite weight.

Several averages of the same weights are blended in one pass: the weights are read, checked and moved once.

Checking every weight in passes of its own costs as much as the update does. So large averages are blended by a compiled
pass that checks as it goes (see `compiled`), where torch can compile. Elsewhere, on a CPU, the *sum* of a slice, taken
while the slice is in the cache, tells whether all of it is finite; only a slice that fails is looked at in detail. On a
GPU reading a sum would stall the queue, so non-finite differences are cleared in place instead.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kohya_ext.ema import compiled
from kohya_ext.ema.device import Staging
from kohya_ext.tensors.elements import DEVICE_SLICE, DeviceCount, flat_views, local, scatter, slice_size, slices
from kohya_ext.tensors.rounding import element_indices, random_words, round_stochastically, stream_key

# Parameters up to this size are checked and blended together: their number, not their size, costs time.
_SMALL = 1 << 15

_Kind = tuple[torch.dtype, torch.dtype, torch.device]


@dataclass(frozen=True)
class Update:
    """One update of the EMA. weight: the w of the lerp. seed, number: what stochastic rounding depends on."""

    weight: float
    number: int
    seed: int = 0


# (place among the parameters, weights, the shadow of each average): one dtype and one device for all the shadows
Averaged = tuple[int, Tensor, tuple[Tensor, ...]]


@dataclass
class _Lot:
    """Flat tensors of one kind that are blended in one go. shadows: of each average, one for each of the weights."""

    shadows: list[list[Tensor]] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    elements: int = 0

    def add(self, shadows: Sequence[Tensor], weights: Tensor) -> None:
        self.shadows = self.shadows or [[] for _ in shadows]
        for own, shadow in zip(self.shadows, shadows, strict=True):
            own.append(shadow)
        self.weights.append(weights)
        self.elements += weights.numel()


class Blender:
    """Blends weights into shadows and keeps the scratch memory this takes. `skipped()` counts non-finite weights.

    use_compiled: None leaves it to the number of weights (`size_up`) and to whether torch can compile.
    """

    def __init__(self, use_compiled: bool | None = None, guarded: bool = True) -> None:
        self._asked_for = use_compiled
        self._use_compiled = bool(use_compiled)
        self._guarded = guarded
        self._staging = Staging()
        self._skipped = 0
        self._skipped_elsewhere = DeviceCount()

    def is_like(self, other: Blender) -> bool:
        """Whether another one would blend in the same way."""
        return (self._asked_for, self._guarded) == (other._asked_for, other._guarded)

    def size_up(self, elements: int) -> None:
        """Learn how many weights there are, before the first of them is blended."""
        if self._asked_for is None:
            self._use_compiled = elements >= compiled.WORTHWHILE

    def skipped(self) -> int:
        """How many non-finite weights were kept out so far. Waits for the device."""
        return self._skipped + self._skipped_elsewhere.total()

    def blend(self, averaged: Sequence[Averaged], updates: Sequence[Update]) -> None:
        """Update the shadows of each (place, weights, shadows), one for each update. Call it without gradients."""
        if len({self._compilable(compiled.SMALLEST, update.weight) for update in updates}) > 1:
            self._blend_each(averaged, updates)
            return
        bare = _Lot()
        large: dict[_Kind, _Lot] = defaultdict(_Lot)
        small: dict[_Kind, _Lot] = defaultdict(_Lot)
        for place, parameter, shadows in averaged:
            weights, first = local(parameter), shadows[0]
            if not first.numel():  # of a sharded tensor, some processes may have nothing
                continue
            if not self._guarded and all(_alike(weights, shadow) for shadow in shadows):
                bare.add(shadows, weights)
                continue
            views = flat_views(weights, *shadows)
            if views is None or first.dtype == torch.bfloat16 or weights.device != first.device:
                self._blend_one((place, weights, shadows), updates)
                continue
            kind = (first.dtype, weights.dtype, first.device)
            if self._compilable(first.numel(), updates[0].weight):
                large[kind].add(views[1:], views[0])
            elif first.numel() > _SMALL:
                self._blend_one((place, weights, shadows), updates)
            else:
                small[kind].add(views[1:], views[0])
                if small[kind].elements >= slice_size(first.device):
                    self._blend_small(small.pop(kind), updates)
        for own, update in zip(bare.shadows, updates, strict=False):
            torch._foreach_lerp_(own, bare.weights, update.weight)
        for lot in large.values():
            self._blend_large(lot, updates)
        for lot in small.values():
            self._blend_small(lot, updates)

    def _blend_each(self, averaged: Sequence[Averaged], updates: Sequence[Update]) -> None:
        """In the first steps: some are too heavy yet for a compiled pass, some are not."""
        for number, update in enumerate(updates):
            self.blend([(place, weights, (shadows[number],)) for place, weights, shadows in averaged], [update])

    def _compilable(self, elements: int, weight: float) -> bool:
        return self._use_compiled and elements >= compiled.SMALLEST and weight < compiled.HEAVIEST

    def _blend_large(self, lot: _Lot, updates: Sequence[Update]) -> None:
        if not self._blend_compiled(lot.shadows, lot.weights, updates):
            for weights, *shadows in zip(lot.weights, *lot.shadows, strict=True):
                self._blend_one((0, weights, tuple(shadows)), updates)

    def _blend_compiled(
        self, shadows: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], updates: Sequence[Update]
    ) -> bool:
        """False, from the first failure on, where torch cannot compile and nobody has insisted."""
        if not self._use_compiled:
            return False
        try:
            compiled.blend_(shadows, weights, [update.weight for update in updates])
        except compiled.CannotCompileError as error:
            if self._asked_for:
                raise
            self._use_compiled = False
            warnings.warn(
                f"{error}. Updates of the EMA take about twice as long without it", RuntimeWarning, stacklevel=2
            )
        return self._use_compiled

    def _blend_small(self, lot: _Lot, updates: Sequence[Update]) -> None:
        """Tensors up to _SMALL, of one kind, on one device."""
        weights = lot.weights
        if lot.shadows[0][0].dtype == weights[0].dtype and _may_look_at(weights[0].device):
            if math.isfinite(float(torch.stack(torch._foreach_norm(weights)).sum())):
                for own, update in zip(lot.shadows, updates, strict=True):
                    torch._foreach_lerp_(own, weights, update.weight)
                return
            for newest, *shadows in zip(weights, *lot.shadows, strict=True):
                self._skipped += _lerp_finite(shadows, newest, updates)
            return
        _blend_gathered(lot.shadows, weights, lambda shadows, newest: self._lerp(shadows, newest, updates))

    def _blend_one(self, averaged: Averaged, updates: Sequence[Update]) -> None:
        place, weights, shadows = averaged
        dtype, device = shadows[0].dtype, shadows[0].device
        views = flat_views(weights, *shadows)
        if views is None:  # layouts differ: rare, and then not worth slicing
            self._blend_unlike(averaged, updates)
            return
        flat_weights, *flat_shadows = views
        elsewhere = weights.device != device
        in_one_pass = elsewhere and dtype != torch.bfloat16 and self._compilable(weights.numel(), updates[0].weight)
        bounds = list(slices(weights.numel(), DEVICE_SLICE if elsewhere else slice_size(device)))
        arrivals = self._staging.bring(flat_weights, bounds, flat_shadows[0], cast=not in_one_pass)
        for (start, length), part in zip(bounds, arrivals, strict=True):
            goals = [flat[start : start + length] for flat in flat_shadows]
            if not (in_one_pass and self._blend_compiled([[goal] for goal in goals], [part], updates)):
                self._blend_slice(place, start, part.to(dtype) if in_one_pass else part, goals, updates)

    def _blend_unlike(self, averaged: Averaged, updates: Sequence[Update]) -> None:
        """Shadows whose elements have another order in memory than the weights'."""
        place, weights, shadows = averaged
        dtype, device = shadows[0].dtype, shadows[0].device
        if dtype != torch.bfloat16:
            self._blend_slice(place, 0, weights.to(device, dtype), shadows, updates)
            return
        flat = [shadow.reshape(-1) for shadow in shadows]
        self._blend_slice(place, 0, weights.reshape(-1).to(device, torch.float32), flat, updates)
        for shadow, own in zip(shadows, flat, strict=True):
            if not shadow.is_contiguous():  # else `reshape` has made no copy
                shadow.copy_(own.view_as(shadow))

    def _blend_slice(
        self, place: int, start: int, weights: Tensor, shadows: Sequence[Tensor], updates: Sequence[Update]
    ) -> None:
        """weights: on the device of the shadows, in their dtype or (for bfloat16 shadows) in float32."""
        if shadows[0].dtype != torch.bfloat16:
            self._lerp(shadows, weights, updates)
            return
        exact = [shadow.to(torch.float32) for shadow in shadows]
        self._lerp(exact, weights, updates)
        for shadow, own, update in zip(shadows, exact, updates, strict=True):
            key = stream_key(update.seed, update.number, place)
            words = random_words(key, element_indices(start, shadow.numel(), shadow.device))
            shadow.copy_(round_stochastically(own, words, torch.bfloat16))

    def _lerp(self, shadows: Sequence[Tensor], weights: Tensor, updates: Sequence[Update]) -> None:
        if self._guarded and not _may_look_at(weights.device):
            self._lerp_unseen(shadows, weights, updates)
        elif not self._guarded or math.isfinite(float(weights.sum())):
            for shadow, update in zip(shadows, updates, strict=True):
                shadow.lerp_(weights, update.weight)
        else:
            self._skipped += _lerp_finite(shadows, weights, updates)

    def _lerp_unseen(self, shadows: Sequence[Tensor], weights: Tensor, updates: Sequence[Update]) -> None:
        """The same without looking at a result, for devices that work in the background."""
        finite = torch.isfinite(weights)
        for shadow, update in zip(shadows, updates, strict=True):
            shadow.copy_(torch.where(finite, torch.lerp(shadow, weights, update.weight), shadow))
        self._skipped_elsewhere.add(finite.numel() - finite.sum())


def copy_finite(weights: Tensor, shadow: Tensor) -> None:
    """Start a shadow from weights; a non-finite weight starts as 0."""
    weights = local(weights)
    views = flat_views(weights, shadow)
    source, target = views if views is not None else (weights, shadow)
    if views is None:
        target.copy_(source)
        target.nan_to_num_(0.0, 0.0, 0.0)
        return
    for start, length in slices(target.numel(), slice_size(target.device)):
        part = target[start : start + length]
        part.copy_(source[start : start + length])
        part.nan_to_num_(0.0, 0.0, 0.0)


def _alike(weights: Tensor, shadow: Tensor) -> bool:
    """True where torch's own pass can take the pair as it is."""
    same = weights.dtype == shadow.dtype != torch.bfloat16 and weights.device == shadow.device
    return same and weights.is_contiguous() and shadow.is_contiguous()


def _may_look_at(device: torch.device) -> bool:
    """True where reading a result does not stall anything."""
    return device.type == "cpu"


def _lerp_finite(shadows: Sequence[Tensor], weights: Tensor, updates: Sequence[Update]) -> int:
    """lerp where the weight is finite; returns for how many elements it is not."""
    finite = torch.isfinite(weights)
    for shadow, update in zip(shadows, updates, strict=True):
        shadow.copy_(torch.where(finite, torch.lerp(shadow, weights, update.weight), shadow))
    return int(finite.numel() - finite.sum())


def _blend_gathered(
    shadows: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], lerp: Callable[[list[Tensor], Tensor], None]
) -> None:
    """Call `lerp(shadows, weights)` once, on flat copies of all of these, and bring the results back into `shadows`.

    All flat, on one device; the shadows of one dtype, in which `lerp` gets the weights too.
    """
    gathered = [torch.cat(list(own)) for own in shadows]
    lerp(gathered, torch.cat(list(weights)).to(gathered[0].dtype))
    for whole, own in zip(gathered, shadows, strict=True):
        scatter(whole, own)
