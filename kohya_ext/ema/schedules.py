"""How much of the newest weights each update takes: the decay schedules of the exponential moving average.

A schedule is a rule for the decay of *one real optimizer step*. Updating every k-th step only must not lengthen the
average, so the k decays in between are multiplied: `weight(n, every=k) = 1 - decay(first step) * ... * decay(last)`.
All schedules count real steps from the one at which averaging starts; the first is step 1.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

# sigma_rel of a flat mean (exponent 0): a wider average than that would weigh old weights more than new ones.
WIDEST_SIGMA_REL = 12**-0.5


@runtime_checkable
class Schedule(Protocol):
    """The weight that the n-th update gives to the newest weights."""

    @property
    def name(self) -> str:
        """What `--ema_schedule` calls it."""

    @property
    def starts_fresh(self) -> bool:
        """True when the first update replaces the shadow, so that the start model has no share in the EMA."""

    def weight(self, update: int, every: int = 1) -> float:
        """The w of `shadow = lerp(shadow, p, w)`.

        Args:
            update: which update, counted from 1.
            every: real steps that one update stands for.

        Returns:
            The share of the newest weights, above 0 and at most 1.

        Raises:
            ValueError: either of them is below 1.
        """

    def horizon(self, steps: int) -> float:
        """How many of the last steps the EMA covers after `steps` steps: the 1 / (1 - decay) of that moment."""

    def start_share(self, steps: int) -> float:
        """The share (0 to 1) of the start model that is left in the EMA after `steps` steps."""


def describe(schedule: Schedule, total_steps: int) -> str:
    """What the EMA will cover, for people.

    Args:
        schedule: of the EMA.
        total_steps: real steps that are averaged in all.

    Returns:
        A phrase such as `the last ~2,000 of 6,000 steps; start model 0 %`.
    """
    if total_steps < 1:
        return "no step to average"
    covered = min(total_steps, max(1, _round_to_two_digits(schedule.horizon(total_steps))))
    percent = 100 * schedule.start_share(total_steps)
    share = "0" if percent == 0 else "<1" if percent < 0.5 else f"{percent:.0f}"
    last = f"the last ~{covered:,} of" if covered < total_steps else "all"
    steps = f"{last} {total_steps:,} steps" if total_steps > 1 else "the only step"
    return f"{steps}; start model {share} %"


@dataclass(frozen=True)
class Debiased:
    """Constant decay with the start model's share divided out, like Adam's bias correction.

    After n steps the EMA is exactly sum(decay**(n-i) * p_i) / sum(decay**(n-i)).

    Args:
        decay: of one real step, at least 0 and below 1.

    Reference:
        Kingma, Ba: Adam, 2015, section 3, https://arxiv.org/abs/1412.6980.
    """

    decay: float
    name = "debiased"
    starts_fresh = True

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def weight(self, update: int, every: int = 1) -> float:
        """See `Schedule.weight`."""
        _check_update(update, every)
        if self.decay == 0:
            return 1.0
        rate = every * math.log(self.decay)
        return math.expm1(rate) / math.expm1(update * rate)

    def horizon(self, steps: int) -> float:
        """See `Schedule.horizon`."""
        return 1 / (1 - self.decay)

    def start_share(self, steps: int) -> float:
        """See `Schedule.start_share`."""
        return 0.0 if steps > 0 else 1.0


@dataclass(frozen=True)
class Constant:
    """The same decay at every step; the start model fades as decay**n.

    Args:
        decay: of one real step, at least 0 and below 1.
    """

    decay: float
    name = "constant"
    starts_fresh = False

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def weight(self, update: int, every: int = 1) -> float:
        """See `Schedule.weight`."""
        _check_update(update, every)
        return 1.0 if self.decay == 0 else -math.expm1(every * math.log(self.decay))

    def horizon(self, steps: int) -> float:
        """See `Schedule.horizon`."""
        return 1 / (1 - self.decay)

    def start_share(self, steps: int) -> float:
        """See `Schedule.start_share`."""
        return self.decay**steps


class _Ramp:
    """What schedules share whose decay grows from step to step; the start model is in the EMA from the first."""

    starts_fresh = False

    def weight(self, update: int, every: int = 1) -> float:
        """See `Schedule.weight`."""
        _check_update(update, every)
        last = update * every
        return 1 - math.prod(self._decay_at(step) for step in range(last - every + 1, last + 1))

    def horizon(self, steps: int) -> float:
        """See `Schedule.horizon`."""
        return 1 / (1 - self._decay_at(steps))

    def start_share(self, steps: int) -> float:
        """See `Schedule.start_share`."""
        return math.prod(self._decay_at(step) for step in range(1, steps + 1))

    def _decay_at(self, step: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Warmup(_Ramp):
    """The ramp min(decay, (1 + t) / (10 + t)) known from many trainers.

    Args:
        decay: of one real step t, once the ramp has reached it; at least 0 and below 1.

    Reference:
        TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """

    decay: float
    name = "warmup"

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def _decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Exponential(_Ramp):
    """decay * (1 - exp(-beta * t / max_steps)): what old command lines ask for with `--ema_exp_beta`.

    Args:
        decay: what the decay of real step t tends to, at least 0 and below 1.
        beta: how early it is reached, above 0.
        max_steps: the planned number of real steps, at least 1.
    """

    decay: float
    beta: float
    max_steps: int
    name = "exp"

    def __post_init__(self) -> None:
        _check_decay(self.decay)
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be a positive number, got {self.beta!r}; 0 means the schedule `warmup`")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps!r}")

    def _decay_at(self, step: int) -> float:
        return -self.decay * math.expm1(-self.beta * step / self.max_steps)


@dataclass(frozen=True)
class Power:
    """The power-function average: its width is a fixed share of the run, however long it gets.

    Args:
        sigma_rel: standard deviation of the EMA's profile relative to the steps so far, 0 < sigma_rel < 0.288.

    Reference:
        Karras et al.: Analyzing and Improving the Training Dynamics of Diffusion Models, 2023, section 3,
        https://arxiv.org/abs/2312.02696.
    """

    sigma_rel: float
    name = "power"
    starts_fresh = True

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel < WIDEST_SIGMA_REL:
            raise ValueError(f"sigma_rel must lie between 0 and {WIDEST_SIGMA_REL:.3f}, got {self.sigma_rel!r}")

    @property
    def exponent(self) -> float:
        """gamma: a step t weighs in proportion to t**gamma."""
        return _exponent(self.sigma_rel)

    def weight(self, update: int, every: int = 1) -> float:
        """See `Schedule.weight`."""
        # ((t - k) / t)**(gamma + 1) for t = update * k: the interval cancels out
        _check_update(update, every)
        return 1.0 if update == 1 else -math.expm1((self.exponent + 1) * math.log1p(-1 / update))

    def horizon(self, steps: int) -> float:
        """See `Schedule.horizon`."""
        return 1 / self.weight(steps)

    def start_share(self, steps: int) -> float:
        """See `Schedule.start_share`."""
        return 0.0 if steps > 0 else 1.0


def debiased(decay: float) -> Debiased:
    """See `Debiased`; raises ValueError unless 0 <= decay < 1."""
    return Debiased(decay)


def constant(decay: float) -> Constant:
    """See `Constant`; raises ValueError unless 0 <= decay < 1."""
    return Constant(decay)


def warmup(decay: float) -> Warmup:
    """See `Warmup`; raises ValueError unless 0 <= decay < 1."""
    return Warmup(decay)


def exp(decay: float, beta: float, max_steps: int) -> Exponential:
    """See `Exponential`; raises ValueError for a decay, beta or max_steps out of range."""
    return Exponential(decay, beta, max_steps)


def power(sigma_rel: float) -> Power:
    """See `Power`; raises ValueError for a sigma_rel out of range."""
    return Power(sigma_rel)


def _sigma_rel(gamma: float) -> float:
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")


def _check_update(update: int, every: int) -> None:
    if update < 1 or every < 1:
        raise ValueError(f"updates and intervals count from 1, got update {update} and interval {every}")


def _round_to_two_digits(value: float) -> int:
    digits = max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / 10**digits) * 10**digits)


@functools.lru_cache
def _exponent(sigma_rel: float) -> float:
    """Solved by bisection: the width falls as the exponent grows."""
    low, high = 0.0, 1.0
    while _sigma_rel(high) > sigma_rel:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigma_rel(middle) > sigma_rel else (low, middle)
    return (low + high) / 2
