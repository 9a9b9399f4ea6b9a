from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.presets.rates import equivalent, matching


def travelled_by_adacoor(rate: float, steps: int, eps: float, gradient: float) -> float:
    """How far one weight gets with gradients of one size and sign, by the published formula step by step."""
    vt = way = 0.0
    for _ in range(steps):
        vt += eps * gradient * gradient
        way += rate * eps * gradient / (math.sqrt(vt) + eps)
    return way


def travelled_by_adam(rate: float, steps: int, gradient: float) -> float:
    first = second = way = 0.0
    for step in range(1, steps + 1):
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        way += rate * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return way


@pytest.mark.parametrize("steps", [200, 2000, 20000])
@pytest.mark.parametrize("eps", [1e-8, 1e-10])
def test_both_travel_as_far(steps: int, eps: float) -> None:
    rate = random.Random(steps).uniform(1e-6, 1e-3)
    # a gradient well above sqrt(eps): below it AdaCoor is SGD, and no rate of another optimizer describes it
    ours = travelled_by_adacoor(matching(rate, steps, eps), steps, eps, gradient=1.0)
    assert ours == pytest.approx(travelled_by_adam(rate, steps, gradient=1.0), rel=0.06)


def test_a_lora_at_1e_4_for_2000_steps_means_22() -> None:
    assert matching(1e-4, 2000) == pytest.approx(22.4, abs=0.1)


@given(
    rate=st.floats(1e-9, 1.0),
    steps=st.integers(1, 10**9),
    eps=st.floats(1e-16, 1.0),
)
def test_there_and_back(rate: float, steps: int, eps: float) -> None:
    assert equivalent(matching(rate, steps, eps), steps, eps) == pytest.approx(rate)
