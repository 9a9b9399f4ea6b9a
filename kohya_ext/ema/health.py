"""Health of the EMA: its distance from the weights, whether it moves at all, and whether it is more than rounding."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kohya_ext.ema.shadow import Shadow
from kohya_ext.tensors.elements import flat_views, slice_size, slices

# Elements of each parameter that the frozen check looks at, evenly spread over it.
_SAMPLES = 64
# Elements of each parameter that tell how much rounding there is.
_ROUNDED_SAMPLES = 4096
_BFLOAT16_DIGITS = 7  # behind the point of a binary number


class FrozenShadowError(RuntimeError):
    """The raw weights moved, their EMA did not."""


def relative_distance(*shadows: Shadow) -> float:
    """How far the EMA is from the weights. Reads everything once, and waits for the device.

    Args:
        *shadows: of one run, all together.

    Returns:
        ||average - weights|| / ||weights|| over all parameters; 0 for an EMA that sits on the weights. A weight that is
        not finite counts as 0.
    """
    apart, size = squared_norms(*shadows)
    return math.sqrt(apart / size) if size else 0.0


def squared_norms(*shadows: Shadow) -> tuple[float, float]:
    """(||average - weights|| ** 2, ||weights|| ** 2) of what these shadows average, see `relative_distance`."""
    apart = size = 0.0
    for _, weights, average in itertools.chain.from_iterable(shadow.pairs() for shadow in shadows):
        views = flat_views(weights, average) or [weights.reshape(-1), average.reshape(-1)]
        for start, length in slices(average.numel(), slice_size(average.device)):
            part = slice(start, start + length)
            raw = views[0][part].to(average.device, torch.float32).nan_to_num(0.0, 0.0, 0.0)
            apart += float(torch.linalg.vector_norm(views[1][part].to(torch.float32) - raw)) ** 2
            size += float(torch.linalg.vector_norm(raw)) ** 2
    return apart, size


def rounding_noise(*shadows: Shadow) -> float:
    """How much of the distance between a bfloat16 EMA and the weights is nothing but rounding. Waits for the device.

    Rounding an update of w * gap to steps of one last digit at random has the variance digit * w * |gap|; an average
    keeps what 1 / (2 * w) updates add to it, so an element is off by the root of digit * |gap| / 2.

    Args:
        *shadows: of one run, all together; a sample of each parameter is looked at.

    Returns:
        The part of the distance, from 0 (nothing is rounded) to about 1 (the EMA is noise about the weights).
    """
    noise = apart = 0.0
    for shadow in shadows:
        if shadow.dtype != torch.bfloat16:
            continue
        for _, weights, average in shadow.pairs():
            ours = _some(average, _ROUNDED_SAMPLES).double()
            gap = (_some(weights, _ROUNDED_SAMPLES).double() - ours).nan_to_num(0.0, 0.0, 0.0)
            noise += float((_last_digit(ours) * gap.abs()).sum()) / 2
            apart += float(gap.square().sum())
    return math.sqrt(noise / apart) if apart else 0.0


class RoundingForecast:
    """Tells early how much rounding a bfloat16 EMA will have in the end.

    From how far the weights have moved in the first steps it extrapolates how far they will be from their EMA: as the
    root of time, as in a fine-tune, whose steps are mostly noise of the gradients.

    Args:
        shadow: of which a sample of each parameter is looked at.
        horizon: steps that the EMA will cover.
        after: steps to look at.
    """

    def __init__(self, shadow: Shadow, horizon: float, after: int) -> None:
        self._shadow, self._horizon, self._after = shadow, horizon, after
        self._start: list[Tensor] = []
        self._rates: list[float] = []

    def after_step(self, rate: float) -> float | None:
        """Call it after each step.

        Args:
            rate: the learning rate of that step, as part of the highest of the run.

        Returns:
            Once, when it can be told: the error of the EMA by rounding, as part of its distance from the weights. From
            1 on the raw weights are closer to the exact EMA than the rounded one is.
        """
        if self._shadow.dtype != torch.bfloat16 or len(self._rates) == self._after:
            return None
        if not self._start:
            self._start = self._weights()
            return None
        self._rates.append(rate)
        if len(self._rates) < self._after:
            return None
        highest = sum(share * share for share in self._rates)  # steps at the highest rate that would move them as far
        return self._error(math.sqrt(self._horizon / (2 * highest)) if highest else 0.0)

    def _error(self, growth: float) -> float | None:
        noise = apart = 0.0
        for before, now in zip(self._start, self._weights(), strict=True):
            gap = growth * (now - before).abs().nan_to_num(0.0, 0.0, 0.0)
            noise += float((_last_digit(now) * gap).sum()) / 2
            apart += float(gap.square().sum())
        return math.sqrt(noise / apart) if apart else None

    def _weights(self) -> list[Tensor]:
        return [_some(weights, _ROUNDED_SAMPLES).double() for _, weights, _ in self._shadow.pairs()]


def _last_digit(values: Tensor) -> Tensor:
    """What the last binary digit of a bfloat16 is worth, of the size of these float64 numbers."""
    return torch.exp2(torch.frexp(values).exponent.double() - 1 - _BFLOAT16_DIGITS)


@dataclass(frozen=True)
class _Sample:
    weights: Tensor
    average: Tensor


class FrozenCheck:
    """Raises when `after` updates have moved the raw weights and left every sampled element of the EMA alone.

    No fault, and not counted: weights that did not move (a learning rate of 0), and steps without an update (a late
    start, an interval).

    Args:
        shadow: whose EMA is watched; a sample of each parameter is copied to the CPU.
        after: updates from one look to the next.
    """

    def __init__(self, shadow: Shadow, after: int = 20) -> None:
        self._shadow = shadow
        self._after = after
        self._seen = 0
        self._sample: list[_Sample] | None = None

    def check(self) -> None:
        """Call it after `Shadow.update()`; looks at the weights every `after` updates. Raises FrozenShadowError."""
        if self._shadow.updates < 1:
            return
        if self._sample is None:
            self._begin()
        elif self._shadow.updates - self._seen >= self._after:
            before, now = self._sample, self._take()
            if _moved([sample.weights for sample in before], [sample.weights for sample in now]) and not _moved(
                [sample.average for sample in before], [sample.average for sample in now]
            ):
                raise FrozenShadowError(
                    f"the EMA has not moved in {self._shadow.updates - self._seen} updates although the weights have "
                    f"(schedule {self._shadow.schedule.name}, decay {self._shadow.decay:g}, {self._shadow.dtype})"
                )
            self._begin()

    def _begin(self) -> None:
        self._sample, self._seen = self._take(), self._shadow.updates

    def _take(self) -> list[_Sample]:
        return [_Sample(_some(weights), _some(average)) for _, weights, average in self._shadow.pairs()]


def _some(tensor: Tensor, count: int = _SAMPLES) -> Tensor:
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
    return flat[:: max(1, flat.numel() // count)].to("cpu", copy=True)


def _moved(before: list[Tensor], now: list[Tensor]) -> bool:
    return any(not torch.equal(old, new) for old, new in zip(before, now, strict=True))
