from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.report.chart import HEIGHT, LARGEST, MOST_POINTS, TICKS, WIDTH, Chart, Line, decades, running_mean, ticks

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def points_of(svg: str) -> list[tuple[float, float]]:
    found = re.search(r"<polyline points='([^']*)'", svg)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_where_the_points_are() -> None:
    found = points_of(Chart([Line("a<b", "#123", [(0, 1.0), (5, 2.0), (10, 1.0)], dots=True)], mark=5).svg())
    assert found[0][0] < found[1][0] < found[2][0] and found[1][1] < found[0][1] == found[2][1]
    assert "a&lt;b" in Chart([Line("a<b", "#123", [(0, 1.0)])]).svg()


@given(st.lists(st.tuples(st.integers(0, 10**9), FLOATS), max_size=20), st.booleans())
def test_any_numbers_stay_within_the_drawing(points: list[tuple[float, float]], logarithmic: bool) -> None:
    band = [(value - 1, value + 1) for _, value in points]
    svg = Chart([Line("a", "red", points, band)], logarithmic=logarithmic).svg()
    drawn = [one for one in points if abs(one[1]) <= LARGEST and (one[1] >= 1 / LARGEST or not logarithmic)]
    assert bool(svg) == bool(drawn) and "nan" not in svg and "inf" not in svg
    if svg:
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points_of(svg))


@pytest.mark.parametrize(
    ("low", "high", "least", "expected"),
    [
        (0.918, 1.17, 0, [0.95, 1.0, 1.05, 1.1, 1.15]),
        (0, 570, 1, [0, 100, 200, 300, 400, 500]),
        (1, 24, 1, [5, 10, 15, 20]),
        (0, 1, 1, [0, 1]),
        (-0.3, 0.3, 0, [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]),
        (1e-5, 1.2e-5, 0, [1e-5, 1.05e-5, 1.1e-5, 1.15e-5, 1.2e-5]),
        (5, 5, 0, [5]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, least: float, expected: list[float]) -> None:
    assert [f"{value:.10g}" for value in ticks(low, high, least)] == [f"{value:.10g}" for value in expected]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.127, 1.23, [0.2, 0.5, 1]),
        (0.0309, 0.124, [0.04, 0.06, 0.08, 0.1, 0.12]),
        (1e-6, 1e-2, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]),
    ],
)
def test_logarithmic_axes_too(low: float, high: float, expected: list[float]) -> None:
    assert decades(math.log10(low), math.log10(high)) == pytest.approx(expected)


@given(st.floats(-1e30, 1e30), st.floats(0, 1e30))
def test_there_are_never_many(low: float, more: float) -> None:
    found = ticks(low, low + more)
    assert len(found) <= TICKS + 1 and found == sorted(found)


def test_long_lines_are_thinned_out() -> None:
    assert len(points_of(Chart([Line("a", "red", [(step, 1.0) for step in range(10**5)])]).svg())) <= MOST_POINTS


def test_the_running_mean() -> None:
    assert running_mean([(0, 0.0), (1, 3.0), (2, 6.0)]) == [(0, 1.5), (1, 3.0), (2, 4.5)]
    assert running_mean([]) == []
    assert running_mean([(step, 2.0) for step in range(100)])[50][1] == pytest.approx(2.0)
