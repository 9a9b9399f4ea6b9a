"""The arithmetic of one update: shadow = lerp(shadow, weights, w), never taking in a non-finite weight.

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
from kohya_ext.tensors.elements import DEVICE_SLICE, DeviceCount, flat_views, scatter, slice_size, slices
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


@dataclass
class _Lot:
    """Flat tensors of one kind that are blended in one go."""

    shadows: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    elements: int = 0

    def add(self, shadow: Tensor, weights: Tensor) -> None:
        self.shadows.append(shadow)
        self.weights.append(weights)
        self.elements += shadow.numel()


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

    def size_up(self, elements: int) -> None:
        """Learn how many weights there are, before the first of them is blended."""
        if self._asked_for is None:
            self._use_compiled = elements >= compiled.WORTHWHILE

    def skipped(self) -> int:
        """How many non-finite weights were kept out so far. Waits for the device."""
        return self._skipped + self._skipped_elsewhere.total()

    def blend(self, averaged: list[tuple[int, Tensor, Tensor]], update: Update) -> None:
        """Update the shadow of every (index, weights, shadow). To be called without gradients."""
        bare = _Lot()
        large: dict[_Kind, _Lot] = defaultdict(_Lot)
        small: dict[_Kind, _Lot] = defaultdict(_Lot)
        for index, weights, shadow in averaged:
            if not self._guarded and _alike(weights, shadow):
                bare.add(shadow, weights)
                continue
            views = flat_views(weights, shadow)
            if views is None or shadow.dtype == torch.bfloat16 or weights.device != shadow.device:
                self._blend_one(index, weights, shadow, update)
                continue
            kind = (shadow.dtype, weights.dtype, shadow.device)
            if self._compilable(shadow.numel(), update.weight):
                large[kind].add(views[1], views[0])
            elif shadow.numel() > _SMALL:
                self._blend_one(index, weights, shadow, update)
            else:
                small[kind].add(views[1], views[0])
                if small[kind].elements >= slice_size(shadow.device):
                    self._blend_small(small.pop(kind), update.weight)
        if bare.shadows:
            torch._foreach_lerp_(bare.shadows, bare.weights, update.weight)
        for lot in large.values():
            self._blend_large(lot, update)
        for lot in small.values():
            self._blend_small(lot, update.weight)

    def _compilable(self, elements: int, weight: float) -> bool:
        return self._use_compiled and elements >= compiled.SMALLEST and weight < compiled.HEAVIEST

    def _blend_large(self, lot: _Lot, update: Update) -> None:
        if not self._blend_compiled(lot.shadows, lot.weights, update.weight):
            for weights, shadow in zip(lot.weights, lot.shadows, strict=True):
                self._blend_one(0, weights, shadow, update)

    def _blend_compiled(self, shadows: Sequence[Tensor], weights: Sequence[Tensor], weight: float) -> bool:
        """False, from the first failure on, where torch cannot compile and nobody has insisted."""
        if not self._use_compiled:
            return False
        try:
            compiled.blend_(shadows, weights, weight)
        except compiled.CannotCompileError as error:
            if self._asked_for:
                raise
            self._use_compiled = False
            warnings.warn(
                f"{error}. Updates of the EMA take about twice as long without it", RuntimeWarning, stacklevel=2
            )
        return self._use_compiled

    def _blend_small(self, lot: _Lot, weight: float) -> None:
        """Tensors up to _SMALL, of one kind, on one device."""
        shadows, weights = lot.shadows, lot.weights
        if shadows[0].dtype == weights[0].dtype and _may_look_at(shadows[0].device):
            if math.isfinite(float(torch.stack(torch._foreach_norm(weights)).sum())):
                torch._foreach_lerp_(shadows, weights, weight)
                return
            for newest, shadow in zip(weights, shadows, strict=True):
                self._skipped += _lerp_finite(shadow, newest, weight)
            return
        _blend_gathered(shadows, weights, lambda shadow, newest: self._lerp(shadow, newest, weight))

    def _blend_one(self, index: int, weights: Tensor, shadow: Tensor, update: Update) -> None:
        views = flat_views(weights, shadow)
        if views is None:  # layouts differ: rare, and then not worth slicing
            views = [weights, shadow] if shadow.dtype != torch.bfloat16 else [weights.reshape(-1), shadow.reshape(-1)]
            exact = torch.float32 if shadow.dtype == torch.bfloat16 else shadow.dtype
            self._blend_slice(index, 0, views[0].to(shadow.device, exact), views[1], update)
            if shadow.dtype == torch.bfloat16 and not shadow.is_contiguous():  # else `reshape` has made no copy
                shadow.copy_(views[1].view_as(shadow))
            return
        flat_weights, flat_shadow = views
        elsewhere = weights.device != shadow.device
        in_one_pass = elsewhere and shadow.dtype != torch.bfloat16 and self._compilable(shadow.numel(), update.weight)
        bounds = list(slices(flat_shadow.numel(), DEVICE_SLICE if elsewhere else slice_size(shadow.device)))
        arrivals = self._staging.bring(flat_weights, bounds, shadow, cast=not in_one_pass)
        for (start, length), part in zip(bounds, arrivals, strict=True):
            goal = flat_shadow[start : start + length]
            if not (in_one_pass and self._blend_compiled([goal], [part], update.weight)):
                self._blend_slice(index, start, part.to(goal.dtype) if in_one_pass else part, goal, update)

    def _blend_slice(self, index: int, start: int, weights: Tensor, shadow: Tensor, update: Update) -> None:
        """weights: on the device of the shadow, in the shadow's dtype or (for a bfloat16 shadow) in float32."""
        if shadow.dtype != torch.bfloat16:
            self._lerp(shadow, weights, update.weight)
            return
        exact = shadow.to(torch.float32)
        self._lerp(exact, weights, update.weight)
        key = stream_key(update.seed, update.number, index)
        words = random_words(key, element_indices(start, shadow.numel(), shadow.device))
        shadow.copy_(round_stochastically(exact, words, torch.bfloat16))

    def _lerp(self, shadow: Tensor, weights: Tensor, weight: float) -> None:
        if not self._guarded:
            shadow.lerp_(weights, weight)
        elif not _may_look_at(shadow.device):
            self._lerp_unseen(shadow, weights, weight)
        elif math.isfinite(float(weights.sum())):
            shadow.lerp_(weights, weight)
        else:
            self._skipped += _lerp_finite(shadow, weights, weight)

    def _lerp_unseen(self, shadow: Tensor, weights: Tensor, weight: float) -> None:
        """The same without looking at a result, for devices that work in the background."""
        finite = torch.isfinite(weights)
        shadow.copy_(torch.where(finite, torch.lerp(shadow, weights, weight), shadow))
        self._skipped_elsewhere.add(finite.numel() - finite.sum())


def copy_finite(weights: Tensor, shadow: Tensor) -> None:
    """Start a shadow from weights; a non-finite weight starts as 0."""
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


def _lerp_finite(shadow: Tensor, weights: Tensor, weight: float) -> int:
    """lerp where the weight is finite; returns for how many elements it is not."""
    finite = torch.isfinite(weights)
    shadow.copy_(torch.where(finite, torch.lerp(shadow, weights, weight), shadow))
    return int(finite.numel() - finite.sum())


def _blend_gathered(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], lerp: Callable[[Tensor, Tensor], None]
) -> None:
    """Call `lerp(shadow, weights)` once, on flat copies of all of these, and bring the results back into `shadows`.

    All flat, on one device; the shadows of one dtype, in which `lerp` gets the weights too.
    """
    gathered = torch.cat(list(shadows))
    lerp(gathered, torch.cat(list(weights)).to(gathered.dtype))
    scatter(gathered, shadows)
