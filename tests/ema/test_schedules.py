"""Weights of the schedules against their definitions, in exact or double arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from kohya_ext.ema.schedules import Schedule, constant, debiased, describe, exp, power, warmup

ALL = [debiased(0.9995), constant(0.9995), warmup(0.9995), exp(0.9995, 15.0, 6000), power(0.1)]


def start_share_after(schedule: Schedule, updates: int, every: int = 1) -> float:
    return math.prod(1 - schedule.weight(update, every) for update in range(1, updates + 1))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9995, 1 - 1e-9])
def test_debiased_weights_give_the_normalised_sum(decay: float) -> None:
    exact = Fraction(decay)
    for update in (1, 2, 3, 10, 57):
        wanted = (1 - exact) / (1 - exact**update)
        assert debiased(decay).weight(update) == pytest.approx(float(wanted), rel=1e-12)


def test_debiased_has_no_share_of_the_start_model() -> None:
    assert debiased(0.9995).weight(1) == 1.0
    assert debiased(0.0).weight(7) == 1.0
    assert start_share_after(debiased(0.9995), 10) == 0.0


@pytest.mark.parametrize(("steps", "share"), [(1000, 0.61), (2000, 0.37), (4000, 0.135), (6000, 0.05)])
def test_constant_keeps_the_known_share_of_the_start_model(steps: int, share: float) -> None:
    assert start_share_after(constant(0.9995), steps) == pytest.approx(share, abs=0.005)
    assert constant(0.9995).start_share(steps) == pytest.approx(start_share_after(constant(0.9995), steps))


def test_warmup_is_the_ramp_until_it_reaches_the_decay() -> None:
    schedule = warmup(0.9995)
    assert schedule.weight(1) == pytest.approx(1 - 2 / 11)
    assert schedule.weight(100) == pytest.approx(1 - 101 / 110)
    assert schedule.weight(17_989) > 1 - 0.9995
    assert schedule.weight(17_990) == pytest.approx(1 - 0.9995, rel=1e-9)


def test_exp_is_the_formula_of_old_command_lines() -> None:
    assert exp(0.999, 15, 1000).weight(10) == pytest.approx(1 - 0.999 * (1 - math.exp(-15 * 10 / 1000)))


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_power_has_the_published_exponents(sigma_rel: float, gamma: float) -> None:
    assert power(sigma_rel).exponent == pytest.approx(gamma, abs=0.005)


def test_power_averages_with_the_profile_it_promises() -> None:
    shares = [0.0]
    for step in range(1, 2001):
        weight = power(0.1).weight(step)
        shares = [share * (1 - weight) for share in shares] + [weight]
    mean = sum(step * share for step, share in enumerate(shares))
    deviation = sum((step - mean) ** 2 * share for step, share in enumerate(shares)) ** 0.5
    assert sum(shares) == pytest.approx(1)
    assert deviation / 2000 == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("every", [2, 10])
def test_an_interval_leaves_the_older_weights_the_same_share(schedule: Schedule, every: int) -> None:
    """From update to update the decays of the steps in between are multiplied, so the horizon does not stretch."""
    for update in (2, 3, 40):
        steps = range((update - 1) * every + 1, update * every + 1)
        wanted = math.prod(1 - schedule.weight(step) for step in steps)
        assert 1 - schedule.weight(update, every) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.name)
def test_the_start_share_is_what_the_weights_leave(schedule: Schedule) -> None:
    assert schedule.start_share(30) == pytest.approx(start_share_after(schedule, 30), abs=1e-12)
    assert schedule.starts_fresh == (schedule.weight(1) == 1.0)


def test_the_description_says_what_is_covered() -> None:
    assert describe(debiased(0.9995), 6000) == "the last ~2,000 of 6,000 steps; start model 0 %"
    assert describe(constant(0.9995), 1000) == "all 1,000 steps; start model 61 %"
    assert describe(constant(0.9995), 6000) == "the last ~2,000 of 6,000 steps; start model 5 %"
    assert describe(warmup(0.9995), 6000) == "the last ~670 of 6,000 steps; start model <1 %"
    assert describe(debiased(0.9), 1) == "the only step; start model 0 %"
    assert describe(debiased(0.9), 0) == "no step to average"


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, math.nan])
def test_a_decay_out_of_range_is_refused_by_name(decay: float) -> None:
    for make in (debiased, constant, warmup, lambda value: exp(value, 15, 10)):
        with pytest.raises(ValueError, match="decay"):
            make(decay)


def test_other_values_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="beta"):
        exp(0.9, 0, 10)
    with pytest.raises(ValueError, match="max_steps"):
        exp(0.9, 15, 0)
    for sigma_rel in (0.0, 0.3, math.nan):
        with pytest.raises(ValueError, match="sigma_rel"):
            power(sigma_rel)
    with pytest.raises(ValueError, match="update"):
        debiased(0.9).weight(0)
