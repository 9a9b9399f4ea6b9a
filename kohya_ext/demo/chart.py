"""The image at the end of the demo: the loss over the steps, and samples of the raw weights next to the EMA's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH = 1080
MARGIN = 36
CHART = (MARGIN + 60, 104, WIDTH - MARGIN, 400)  # left, top, right, bottom of the axes
TILE, GAP = 64, 8
SAMPLES_TOP = 516

INK, FAINT, PALE, PAPER = "#1f2430", "#6b7280", "#d4d8df", "#ffffff"
BATCH, RAW, EMA = "#c3c9d3", "#d9622b", "#2563c9"


@dataclass(frozen=True)
class SavePoint:
    """One save point: the loss on held-out images and samples, of the raw weights and of their average."""

    step: int
    raw_loss: float
    ema_loss: float
    raw_samples: Sequence[Image.Image]
    ema_samples: Sequence[Image.Image]


@dataclass(frozen=True)
class Figure:
    """losses: (step, loss) of every training step. captions: what the samples show, column by column."""

    title: str
    subtitle: str
    losses: Sequence[tuple[int, float]]
    checkpoints: Sequence[SavePoint]
    captions: Sequence[str]


def draw(figure: Figure) -> Image.Image:
    """The whole image."""
    height = SAMPLES_TOP + len(figure.checkpoints) * (TILE + GAP) + MARGIN
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 24), figure.title, INK, _font(22))
    pen.text((MARGIN, 56), figure.subtitle, FAINT, _font(14))
    _draw_losses(pen, figure)
    _draw_samples(image, pen, figure)
    return image


class Axes:
    """Steps from left to right, losses on a logarithmic scale upwards."""

    def __init__(self, figure: Figure) -> None:
        values = [loss for _, loss in figure.losses]
        values += [loss for point in figure.checkpoints for loss in (point.raw_loss, point.ema_loss)]
        values = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
        self.low, self.high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
        self.steps = max([step for step, _ in figure.losses] + [point.step for point in figure.checkpoints] + [1])

    def at(self, step: float, loss: float) -> tuple[float, float]:
        """The point of the image, in pixels; a loss beyond the axis is drawn at its end."""
        left, top, right, bottom = CHART
        share = (math.log10(max(loss, 1e-12)) - self.low) / (self.high - self.low)
        return left + (right - left) * step / self.steps, bottom - (bottom - top) * min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """1, 2 and 5 of every decade that the axis covers."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        return [value for value in values if self.low <= math.log10(value) <= self.high]


def _draw_losses(pen: Any, figure: Figure) -> None:
    axes, small = Axes(figure), _font(13)
    left, top, right, bottom = CHART
    for value in axes.ticks():
        _, y = axes.at(0, value)
        pen.line((left, y, right, y), PALE)
        pen.text((left - 8, y), f"{value:g}", FAINT, small, anchor="rm")
    for number in range(5):
        step = axes.steps * number / 4
        x, _ = axes.at(step, 1.0)
        pen.line((x, bottom, x, bottom + 5), INK)
        pen.text((x, bottom + 8), f"{step:.0f}", FAINT, small, anchor="ma")
    pen.text(((left + right) / 2, bottom + 28), "optimizer step", INK, small, anchor="ma")
    pen.text((left - 44, top - 10), "loss", INK, small, anchor="ls")

    pen.line([axes.at(step, loss) for step, loss in figure.losses], BATCH, 1)
    pen.line([axes.at(step, loss) for step, loss in _running_mean(figure.losses)], FAINT, 2)
    for colour, name in ((RAW, "raw_loss"), (EMA, "ema_loss")):
        points = [axes.at(point.step, getattr(point, name)) for point in figure.checkpoints]
        pen.line(points, colour, 3)
        for x, y in points:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), colour)
    pen.line((left, top, left, bottom, right, bottom), INK)
    _draw_legend(pen)


def _draw_legend(pen: Any) -> None:
    entries = (
        (BATCH, "training batch"),
        (FAINT, "its running mean"),
        (RAW, "held-out, raw weights"),
        (EMA, "held-out, EMA weights"),
    )
    x, y = CHART[2] - 190, CHART[1] + 12
    pen.rectangle((x - 10, y - 8, CHART[2], y + 22 * len(entries)), PAPER, PALE)
    for number, (colour, name) in enumerate(entries):
        line = y + 22 * number + 6
        pen.line((x, line, x + 24, line), colour, 3)
        pen.text((x + 32, line), name, INK, _font(13), anchor="lm")


def _draw_samples(image: Image.Image, pen: Any, figure: Figure) -> None:
    side = len(figure.captions) * (TILE + GAP)
    label_width = WIDTH - 2 * MARGIN - 2 * side - 24
    columns = (MARGIN + label_width, WIDTH - MARGIN - side)
    for x, title, colour in zip(columns, ("raw weights", "EMA weights"), (RAW, EMA), strict=True):
        pen.text((x + (side - GAP) / 2, SAMPLES_TOP - 46), title, colour, _font(16), anchor="ms")
        for number, caption in enumerate(figure.captions):
            centre = x + number * (TILE + GAP) + TILE / 2
            words = "\n".join(caption.removeprefix("a ").split())
            pen.text((centre, SAMPLES_TOP - 6), words, FAINT, _font(12), anchor="md", align="center", spacing=1)
    for row, point in enumerate(figure.checkpoints):
        y = SAMPLES_TOP + row * (TILE + GAP)
        pen.text((MARGIN, y + TILE / 2), f"step {point.step}", INK, _font(14), anchor="lm")
        for x, samples in zip(columns, (point.raw_samples, point.ema_samples), strict=True):
            for number, sample in enumerate(samples):
                tile = sample.resize((TILE, TILE), Image.Resampling.NEAREST)
                image.paste(tile, (round(x + number * (TILE + GAP)), y))


def _running_mean(losses: Sequence[tuple[int, float]], share: float = 0.05) -> list[tuple[int, float]]:
    """The mean of the steps around each one."""
    reach = max(1, round(len(losses) * share / 2))
    values = [loss for _, loss in losses]
    means = []
    for number, (step, _) in enumerate(losses):
        window = values[max(0, number - reach) : number + reach + 1]
        means.append((step, sum(window) / len(window)))
    return means


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()
