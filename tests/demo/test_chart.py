"""The image: drawn from any losses, in our own colours, at the size it says."""

from __future__ import annotations

import math

import pytest

PIL = pytest.importorskip("PIL.Image")

from kohya_ext.demo import chart  # noqa: E402

RED, BLUE = (200, 0, 0), (0, 0, 200)


def figure(losses: list[tuple[int, float]], points: int = 2) -> chart.Figure:
    samples = [PIL.new("RGB", (16, 16), RED)] * 6
    averaged = [PIL.new("RGB", (16, 16), BLUE)] * 6
    checkpoints = [
        chart.SavePoint(10 * (n + 1), 0.5 / (n + 1), 0.4 / (n + 1), samples, averaged) for n in range(points)
    ]
    return chart.Figure("title", "subtitle", losses, checkpoints, ["a red circle"] * 6)


def colours(image: object) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.getcolors(1 << 24)}  # type: ignore[attr-defined]


def test_curves_and_samples_are_in_the_image() -> None:
    image = chart.draw(figure([(step, 1.0 / step) for step in range(1, 21)]))
    assert image.width == chart.WIDTH
    seen = colours(image)
    assert {RED, BLUE} <= seen
    for curve in (chart.RAW, chart.EMA, chart.BATCH):
        assert tuple(int(curve[i : i + 2], 16) for i in (1, 3, 5)) in seen


def test_raw_samples_stand_left_of_the_averages() -> None:
    image = chart.draw(figure([(1, 1.0), (20, 0.1)]))
    row = chart.SAMPLES_TOP + chart.TILE // 2
    line = [image.getpixel((x, row)) for x in range(image.width)]
    assert max(x for x, colour in enumerate(line) if colour == RED) < line.index(BLUE)


@pytest.mark.parametrize("losses", [[], [(1, 0.0)], [(1, math.inf), (2, math.nan), (3, 1.0)], [(1, 1.0), (2, 1.0)]])
def test_odd_losses_do_not_stop_it(losses: list[tuple[int, float]]) -> None:
    assert chart.draw(figure(losses, points=1)).height > chart.SAMPLES_TOP


def test_better_losses_are_drawn_lower() -> None:
    axes = chart.Axes(figure([(1, 1.0), (20, 0.1)]))
    assert axes.at(20, 0.1)[1] > axes.at(20, 1.0)[1]
    assert axes.at(20, 0.5)[0] > axes.at(1, 0.5)[0]
    assert 0.5 in axes.ticks()
