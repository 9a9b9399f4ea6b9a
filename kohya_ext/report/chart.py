"""Lines over the steps of a run, as SVG in a page: axes, a legend, bands of intervals."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 900, 320  # of the drawing, in its own units: a page scales it
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 34  # margins of the axes
TICKS = 8  # of an axis, or one more
LEAST_TICKS = 3  # of a logarithmic one; it gets others where it has fewer
LARGEST = 1e30  # a value beyond it is as good as infinite
MOST_POINTS = 2000  # of a line; more are thinned out

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line. colour: CSS. band: the interval (low, high) around each point, None for none. dots: mark points."""

    label: str
    colour: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float]] | None = None
    dots: bool = False
    width: float = 1.6


@dataclass(frozen=True)
class Chart:
    """Lines with the same axes. mark: a step that is marked by a vertical line. logarithmic: the upward axis."""

    lines: Sequence[Line]
    mark: float | None = None
    logarithmic: bool = False
    up: str = "loss"
    along: str = "optimizer step"

    def svg(self) -> str:
        """The element; "" where there is not a single finite point."""
        lines = [line for line in map(self._readable, self.lines) if line.points]
        if not lines:
            return ""
        axes = _Axes(lines, self.logarithmic)
        parts = [*axes.grid(self.up, self.along)]
        if self.mark is not None:
            x = axes.x(self.mark)
            parts.append(f"<line class=mark x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}'/>")
        for line in lines:
            parts += axes.drawn(line)
        legend = " ".join(
            f"<span><i style='background:{line.colour}'></i>{html.escape(line.label)}</span>" for line in lines
        )
        return (
            f"<figure class=chart><svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>{''.join(parts)}</svg>"
            f"<figcaption>{legend}</figcaption></figure>"
        )

    def _readable(self, line: Line) -> Line:
        """Finite points only (clearly above zero on a logarithmic axis), and no more than can be told apart."""
        keep = [
            number
            for number, (step, value) in enumerate(line.points)
            if math.isfinite(step) and abs(value) <= LARGEST and (value >= 1 / LARGEST or not self.logarithmic)
        ]
        keep = keep[:: max(1, math.ceil(len(keep) / MOST_POINTS))]
        band = None if line.band is None else [line.band[number] for number in keep]
        return Line(line.label, line.colour, [line.points[number] for number in keep], band, line.dots, line.width)


class _Axes:
    def __init__(self, lines: Sequence[Line], logarithmic: bool) -> None:
        self.logarithmic = logarithmic
        steps = [step for line in lines for step, _ in line.points]
        values = [value for line in lines for _, value in line.points]
        values += [end for line in lines for pair in line.band or () for end in pair if abs(end) <= LARGEST]
        if logarithmic:
            values = [value for value in values if value >= 1 / LARGEST]
        self.first, self.last = min(steps), max(max(steps), min(steps) + 1)
        low, high = (math.log10(v) if logarithmic else v for v in (min(values), max(values)))
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        at_zero = not logarithmic and low >= 0  # an axis does not go below what cannot be
        self.low, self.high = max(low - room, 0.0) if at_zero else low - room, high + room

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        if self.logarithmic:
            value = math.log10(value) if value > 0 else self.low
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def grid(self, up: str, along: str) -> list[str]:
        parts = []
        for value in decades(self.low, self.high) if self.logarithmic else ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f"<line class=grid x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
            parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor=end>{value:.10g}</text>")
        parts += [
            f"<text x='{self.x(step):.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor=middle>{step:.0f}</text>"
            for step in ticks(self.first, self.last, least=1)
        ]
        parts.append(f"<text x='{(LEFT + WIDTH) / 2}' y='{HEIGHT - 3}' text-anchor=middle>{html.escape(along)}</text>")
        parts.append(f"<text x='4' y='12'>{html.escape(up)}</text>")
        return parts

    def drawn(self, line: Line) -> list[str]:
        parts = []
        if line.band is not None:
            known = [
                (self.x(step), self.y(low), self.y(high))
                for (step, _), (low, high) in zip(line.points, line.band, strict=True)
                if math.isfinite(low) and math.isfinite(high)
            ]
            edge = [f"{x:.1f},{y:.1f}" for x, y, _ in known] + [f"{x:.1f},{y:.1f}" for x, _, y in reversed(known)]
            parts.append(f"<polygon points='{' '.join(edge)}' fill='{line.colour}' opacity='.12'/>")
        path = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in line.points)
        parts.append(f"<polyline points='{path}' fill=none stroke='{line.colour}' stroke-width='{line.width}'/>")
        if line.dots:
            parts += [
                f"<circle cx='{self.x(step):.1f}' cy='{self.y(value):.1f}' r='3.2' fill='{line.colour}'>"
                f"<title>{step:g}: {value:.5g}</title></circle>"
                for step, value in line.points
            ]
        return parts


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Round numbers from low to high: multiples of 1, 2 or 5 times a power of ten, which is at least `least`."""
    wanted = max((high - low) / TICKS, abs(high) * 1e-12, least, 1 / LARGEST)
    power = 10.0 ** math.floor(math.log10(wanted))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * (1 - 1e-9))
    first = math.ceil(low / apart - 1e-9)
    count = math.floor(high / apart + 1e-9) - first + 1
    return [_rounded((first + number) * apart, apart) for number in range(max(0, count))]


def decades(low: float, high: float) -> list[float]:
    """Round numbers from 10**low to 10**high: powers of ten, where these are few also 2 and 5 times them."""
    if high - low > LEAST_TICKS:
        return [10.0**power for power in ticks(low, high, least=1)]
    found = [
        float(f"{factor}e{power}")
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in (1, 2, 5)
        if low <= math.log10(factor) + power <= high
    ]
    return found if len(found) >= LEAST_TICKS else ticks(10**low, 10**high)


def _rounded(value: float, apart: float) -> float:
    """Without the noise of a multiplication."""
    return round(value, max(0, 1 - math.floor(math.log10(apart)))) + 0.0


def running_mean(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """The mean of the steps around each one, of this share of all."""
    reach = max(1, round(len(points) * share / 2))
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    means = []
    for number, (step, _) in enumerate(points):
        low, high = max(0, number - reach), min(len(points), number + reach + 1)
        means.append((step, (sums[high] - sums[low]) / (high - low)))
    return means
