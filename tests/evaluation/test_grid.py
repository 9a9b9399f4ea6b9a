"""The grid with a painter in the renderer's place."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")
pytest.importorskip("imagehash")
from PIL import Image

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation import sheet
from kohya_ext.evaluation.grid import IMAGES, Grid, render
from kohya_ext.evaluation.memorization import Hash, TrainingImages
from kohya_ext.evaluation.models import columns
from kohya_ext.evaluation.promptfile import Prompt
from tests.evaluation.painter import Painter, models, training_set

CAPTIONS = ["femme ewpp <in> a garden", "femme ewpp on a horse", "femme ewpp with a book"]
PROMPTS = [
    *(Prompt(text, 320, 256, seed=1, section="captions", source=f"{text}.png") for text in CAPTIONS),
    *(Prompt("a red bicycle", 256, 320, seed=seed, section="generic") for seed in (1, 2)),
]


@pytest.fixture
def training(tmp_path: Path) -> TrainingImages:
    folder = training_set(tmp_path / "set", CAPTIONS)
    (folder / "broken.png").write_bytes(b"no image")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*") if path.suffix != ".txt")
    found = TrainingImages(folder, names, Hash())
    assert found.unreadable == ["broken.png"]
    return found


def make(tmp_path: Path, painter: Painter, training: TrainingImages | None = None, **more: Any) -> Grid:
    if not (tmp_path / "models").exists():
        models(tmp_path / "models", "femme-000010", "femme", "femme-ema")
    (tmp_path / "out").mkdir(exist_ok=True)
    found = columns([tmp_path / "models"])
    return render(found, PROMPTS, painter, tmp_path / "out", training=training, **more)


def test_overtraining_shows(tmp_path: Path, training: TrainingImages) -> None:
    """A model that gives its training images back is found, and only that one."""
    grid = make(tmp_path, Painter({"femme": 3, "femme, EMA": 1}, CAPTIONS), training)
    assert [grid.copies(place) for place in range(3)] == [(0, 5), (3, 5), (1, 5)]
    nearest = grid.cells[1][1].nearest
    assert nearest and nearest.path == "5_x/1.jpg" and nearest.copy


def test_a_model_is_loaded_once_and_what_is_drawn_is_kept(tmp_path: Path) -> None:
    painter = Painter({}, CAPTIONS)
    make(tmp_path, painter)
    assert painter.loaded == ["femme, epoch 10", "femme", "femme, EMA"] and len(painter.drawn) == 15
    again = Painter({}, CAPTIONS)
    grid = make(tmp_path, again)
    assert again.loaded == [] and again.drawn == []
    (tmp_path / "out" / grid.cells[4][1].path).unlink()
    make(tmp_path, again)
    assert again.drawn == [("femme", "a red bicycle")]
    other = Painter({}, CAPTIONS)
    make(tmp_path, other, salt="another renderer")
    assert len(other.drawn) == 15


def test_a_new_model_under_the_old_name_is_drawn_anew(tmp_path: Path) -> None:
    make(tmp_path, Painter({}, CAPTIONS))
    models(tmp_path / "models", "femme", keys={"conditioner.x": (3, 3), "y": (1,)})
    again = Painter({}, CAPTIONS)
    make(tmp_path, again)
    assert "femme" in again.loaded


def test_a_grid_that_is_stopped_goes_on(tmp_path: Path) -> None:
    class Stopped(Painter):
        def draw(self, prompt: Prompt) -> Image.Image:
            if len(self.drawn) == 7:
                raise KeyboardInterrupt
            return super().draw(prompt)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Stopped({}, CAPTIONS))
    painter = Painter({}, CAPTIONS)
    make(tmp_path, painter)
    assert len(painter.drawn) == 8 and len(list((tmp_path / "out" / IMAGES).iterdir())) == 15


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    models(tmp_path / "models", "broken", "femme")
    with pytest.raises(UsageError, match="cannot be loaded"):
        make(tmp_path, Painter({}, CAPTIONS))


def test_the_sheet(tmp_path: Path, training: TrainingImages) -> None:
    grid = make(tmp_path, Painter({"femme": 3}, CAPTIONS), training)
    with Image.open(io.BytesIO(sheet.draw(grid, tmp_path / "out"))) as image:
        cell = sheet.CELL + sheet.GAP
        assert image.size == (sheet.MARGIN + 4 * cell + sheet.GAP, sheet.HEAD + 5 * cell)
        colours = image.getcolors(1 << 24) or []
    red = tuple(int(sheet.ALARM[place : place + 2], 16) for place in (1, 3, 5))
    assert sum(count for count, colour in colours if colour == red) > 3 * 2 * 600, "near copies are framed"


@pytest.mark.parametrize("text", ["a word and another " * 9, "W" * 80, "Łódź " * 30, "iiii " * 60, ""])
def test_prompts_stay_beside_the_images(text: str) -> None:
    font = sheet._font(13)
    lines = sheet._wrapped(text, sheet.MARGIN - 2 * sheet.GAP, font)
    assert all(font.getlength(line) <= sheet.MARGIN - 2 * sheet.GAP for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_the_page(tmp_path: Path, training: TrainingImages) -> None:
    grid = make(tmp_path, Painter({"femme": 3}, CAPTIONS), training)
    page = sheet.page(grid, tmp_path / "out", "Grid of <femme>")
    assert page.count("data:image/jpeg;base64") == 5 * 4 and page.count(f"href='{IMAGES}/") == 15
    assert "&lt;in&gt;" in page and "<in>" not in page and "Grid of <femme>" not in page
    assert "3 of 5" in page and page.count("class=copy") == 6
    assert "http" not in page and "<script" not in page


def test_without_training_images(tmp_path: Path) -> None:
    grid = make(tmp_path, Painter({}, CAPTIONS))
    page = sheet.page(grid, tmp_path / "out", "t")
    assert "near copies" not in page and page.count("data:image/jpeg") == 15
    assert (
        Image.open(io.BytesIO(sheet.draw(grid, tmp_path / "out"))).width < 4 * (sheet.CELL + sheet.GAP) + sheet.MARGIN
    )


def test_unrelated_images_are_no_copies(tmp_path: Path) -> None:
    """The limit of the hash keeps clear of images that have nothing to do with each other."""
    from tests.evaluation.painter import image

    measure = Hash()
    features = [measure.features(image(str(number), (256, 256))) for number in range(120)]
    closest = max(measure.likeness(a, b) for place, a in enumerate(features) for b in features[:place])
    assert not measure.told(closest)[1]


def test_a_very_long_grid_still_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "LIMIT", 3000)
    grid = make(tmp_path, Painter({}, CAPTIONS))
    many = Grid(grid.columns, PROMPTS * 8, list(grid.cells) * 8)
    with Image.open(io.BytesIO(sheet.draw(many, tmp_path / "out"))) as image:
        assert image.height <= sheet.LIMIT + sheet.HEAD


def test_no_image_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="no image that can be read"):
        TrainingImages(tmp_path, [Path("a.png")], Hash())
