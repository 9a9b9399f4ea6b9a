"""The toy's data set."""

from __future__ import annotations

from pathlib import Path

import pytest

PIL = pytest.importorskip("PIL.Image")

from kohya_ext.demo.pictures import COLOURS, SHAPES, SIDE, captions, write_pictures  # noqa: E402


def test_every_picture_has_a_caption_and_the_size(tmp_path: Path) -> None:
    assert write_pictures(tmp_path, per_caption=2) == 2 * len(COLOURS) * len(SHAPES)
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 24
    for path in pictures:
        with PIL.open(path) as image:
            assert image.size == (SIDE, SIDE)
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() in captions()


def test_the_caption_names_the_colour_in_the_middle(tmp_path: Path) -> None:
    write_pictures(tmp_path, per_caption=1)
    for path in tmp_path.glob("*.png"):
        pixel = PIL.open(path).getpixel((SIDE // 2, SIDE // 2))
        nearest = min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], pixel, strict=True)))
        assert nearest == path.stem.split("_")[0]


def test_a_seed_gives_the_same_pictures_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_pictures(tmp_path / name, per_caption=1, seed=seed)
    read = {name: (tmp_path / name / "red_circle_00.png").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]
