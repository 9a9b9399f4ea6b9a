"""The arithmetic of one update: shadow = lerp(shadow, weights, w), slice by slice, never taking in a non-finite weight.

Checking every weight in passes of its own costs more than the update does. On a CPU the *sum* of a slice, taken while
the slice is in the cache, tells whether all of it is finite; only a slice that fails is looked at in detail. On a GPU
reading a sum would stall the queue, so non-finite differences are cleared in place instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kohya_ext.elements import flat_views, slice_size, slices
from kohya_ext.ema import compiled
from kohya_ext.ema.staging import Staging
from kohya_ext.rounding import element_indices, random_words, round_stochastically, stream_key

# Parameters up to this size are checked and blended in groups: their number, not their size, costs time.
_SMALL = 1 << 15


@dataclass(frozen=True)
class Update:
    """One update of the average. weight: the w of the lerp. seed, number: what stochastic rounding depends on."""

    weight: float
    number: int
    seed: int = 0


class Blender:
    """Blends weights into shadows and keeps the scratch memory this takes. `skipped()` counts non-finite weights."""

    def __init__(self, use_compiled: bool = False, guarded: bool = True) -> None:
        self._use_compiled = use_compiled
        self._guarded = guarded
        self._staging = Staging()
        self._skipped = 0
        self._skipped_on: dict[torch.device, Tensor] = {}

    def skipped(self) -> int:
        """How many non-finite weights were kept out so far. Waits for the device."""
        return self._skipped + sum(int(count) for count in self._skipped_on.values())

    def blend(self, pairs: list[tuple[int, Tensor, Tensor]], update: Update) -> None:
        """Update the shadow of every (index, weights, shadow)."""
        small: list[tuple[Tensor, Tensor]] = []
        elements = 0
        for index, weights, shadow in pairs:
            if _is_simple(weights, shadow) and (weights.numel() <= _SMALL or not self._guarded):
                small.append((weights, shadow))
                elements += weights.numel()
                if elements >= slice_size(shadow.device):
                    self._blend_small(small, update)
                    small, elements = [], 0
            else:
                self._blend_one(index, weights, shadow, update)
        self._blend_small(small, update)

    def _blend_small(self, pairs: list[tuple[Tensor, Tensor]], update: Update) -> None:
        if not pairs:
            return
        weights, shadows = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if not self._guarded or math.isfinite(float(torch.stack(torch._foreach_norm(weights)).sum())):
            torch._foreach_lerp_(shadows, weights, update.weight)
            return
        for weight, shadow in pairs:
            self._skipped += _lerp_finite(shadow, weight, update.weight)

    def _blend_one(self, index: int, weights: Tensor, shadow: Tensor, update: Update) -> None:
        views = flat_views(weights, shadow)
        if views is None:  # layouts differ: rare, and then not worth slicing
            views = [weights, shadow] if shadow.dtype != torch.bfloat16 else [weights.reshape(-1), shadow.reshape(-1)]
            self._blend_slice(index, 0, views[0].to(shadow.device), views[1], update)
            if shadow.dtype == torch.bfloat16:
                shadow.copy_(views[1].view_as(shadow))
            return
        flat_weights, flat_shadow = views
        if self._use_compiled and _is_compilable(weights, shadow, update.weight):
            compiled.blend_(flat_shadow, flat_weights, update.weight)
            return
        size = slice_size(shadow.device)
        bounds = list(slices(flat_shadow.numel(), size))
        for (start, length), part in zip(bounds, self._staging.bring(flat_weights, bounds, shadow), strict=True):
            self._blend_slice(index, start, part, flat_shadow[start : start + length], update)

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
        elif shadow.device.type != "cpu":
            self._lerp_unseen(shadow, weights, weight)
        elif math.isfinite(float(weights.sum())):
            shadow.lerp_(weights, weight)
        else:
            self._skipped += _lerp_finite(shadow, weights, weight)

    def _lerp_unseen(self, shadow: Tensor, weights: Tensor, weight: float) -> None:
        """The same without looking at a result, for devices that work in the background."""
        finite = torch.isfinite(weights)
        shadow.copy_(torch.where(finite, torch.lerp(shadow, weights, weight), shadow))
        self._count(finite.numel() - finite.sum())

    def _count(self, skipped: Tensor) -> None:
        total = self._skipped_on.get(skipped.device)
        if total is None:
            total = self._skipped_on[skipped.device] = torch.zeros((), dtype=torch.int64, device=skipped.device)
        total += skipped


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


def _is_compilable(weights: Tensor, shadow: Tensor, weight: float) -> bool:
    worth_it = weights.numel() >= compiled.SMALLEST and weight < compiled.HEAVIEST
    return worth_it and shadow.dtype != torch.bfloat16 and weights.device == shadow.device


def _is_simple(weights: Tensor, shadow: Tensor) -> bool:
    """True where the pair can go into a grouped call on the CPU."""
    same_kind = weights.dtype == shadow.dtype != torch.bfloat16 and weights.device == shadow.device
    return same_kind and shadow.device.type == "cpu"


def _lerp_finite(shadow: Tensor, weights: Tensor, weight: float) -> int:
    """lerp where the weight is finite; returns for how many elements it is not."""
    finite = torch.isfinite(weights)
    shadow.copy_(torch.where(finite, torch.lerp(shadow, weights, weight), shadow))
    return int(finite.numel() - finite.sum())
