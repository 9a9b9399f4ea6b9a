"""The toy's data set: coloured shapes on a dark ground, each with a caption that names both."""

from __future__ import annotations

import random
from pathlib import Path

COLOURS = {"red": (230, 60, 50), "green": (70, 190, 80), "blue": (70, 120, 240), "yellow": (240, 200, 60)}
SHAPES = ("circle", "square", "triangle")
GROUND = (24, 26, 34)
SIDE = 16
_OVERSAMPLING = 8


def captions() -> list[str]:
    """Every colour with every shape, in a fixed order."""
    return [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]


def write_pictures(folder: Path, per_caption: int, seed: int = 0) -> int:
    """Draws `per_caption` images of each caption, at varying places and sizes, next to their `.txt`; how many."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    draw_from = random.Random(seed)  # noqa: S311 - a data set, no secret
    for caption in captions():
        _, colour, shape = caption.split()
        for number in range(per_caption):
            large = SIDE * _OVERSAMPLING
            image = Image.new("RGB", (large, large), GROUND)
            radius = draw_from.uniform(0.29, 0.36) * large
            x, y = (draw_from.uniform(0.44, 0.56) * large for _ in "xy")
            _draw(ImageDraw.Draw(image), shape, (x, y), radius, COLOURS[colour])
            stem = folder / f"{colour}_{shape}_{number:02d}"
            image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(stem.with_suffix(".png"))
            stem.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return per_caption * len(captions())


def _draw(pen: object, shape: str, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)  # type: ignore[attr-defined]
    elif shape == "square":
        pen.rectangle(box, fill=colour)  # type: ignore[attr-defined]
    else:
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=colour)  # type: ignore[attr-defined]
