from __future__ import annotations

import math
import random

import pytest

from kohya_ext.validation.estimates import by_image, difference, estimate, quantile


def test_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5 and found.margin == pytest.approx(3.182 * math.sqrt(5 / 3) / 2)
    assert str(found) == "2.5 ± 2.1"


def test_one_image_tells_nothing_about_others() -> None:
    assert estimate([0.25]).margin is None and str(estimate([0.25])) == "0.25"
    with pytest.raises(ValueError, match="no losses"):
        estimate([])


def test_a_loss_that_is_not_a_number() -> None:
    assert math.isnan(estimate([1.0, math.nan]).mean) and estimate([1.0, math.inf]).margin is None


def test_pairs_are_more_exact_than_two_intervals() -> None:
    before = [1.0, 5.0, 9.0]
    change = difference([loss - 0.1 for loss in before], before)
    assert change.mean == pytest.approx(-0.1) and change.margin == pytest.approx(0, abs=1e-12)
    margin = estimate(before).margin
    assert margin is not None and margin > 5


def test_an_image_counts_once() -> None:
    assert by_image([1.0, 3.0, 10.0, 20.0], 2) == [2.0, 15.0]


@pytest.mark.parametrize(("degrees", "exact"), [(1, 12.706), (30, 2.042), (31, 2.0395), (60, 2.0003), (1000, 1.9623)])
def test_students_t(degrees: int, exact: float) -> None:
    assert quantile(degrees) == pytest.approx(exact, abs=3e-4)


def test_95_of_100_intervals_hold_the_mean() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        found = estimate([draw.gauss(3, 2) for _ in range(6)])
        assert found.margin is not None
        hits += abs(found.mean - 3) <= found.margin
    assert 0.935 < hits / 2000 < 0.965
