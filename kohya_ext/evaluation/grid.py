"""A grid: every prompt by every model. Images are kept as files, so that an interrupted grid is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kohya_ext.core.errors import ConflictError
from kohya_ext.evaluation.held_out import Comparison, PromptedImages, compare
from kohya_ext.evaluation.memorization import Nearest, TrainingImages
from kohya_ext.evaluation.models import Column
from kohya_ext.evaluation.promptfile import Prompt, line
from kohya_ext.files.atomic import replacing
from kohya_ext.spec.judged import Judged

IMAGES = "images"
Progress = Callable[[str, int, int], None]


class Renderer(Protocol):
    """Draws with one model at a time."""

    def load(self, column: Column) -> None:
        """Make `column` the current model. Raises UsageError when it cannot be used."""

    def draw(self, prompt: Prompt) -> Any:
        """The image (PIL, RGB, prompt.width x prompt.height) that the current model makes of `prompt`."""


@dataclass(frozen=True)
class Cell:
    """One image. path: relative to the grid's folder. nearest: None without training images.

    likenesses: to the training and held-out images whose captions are prompted, where it was drawn from one of these.
    """

    path: str
    nearest: Nearest | None = None
    likenesses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Grid:
    """rows: prompts; cells: for each prompt one for each column. measure: what compared them, "" for nothing.

    comparisons: for each column, with held-out images; compared: what compared these.
    """

    columns: Sequence[Column]
    prompts: Sequence[Prompt]
    cells: Sequence[Sequence[Cell]]
    measure: str = ""
    images: Path | None = None
    comparisons: Sequence[Comparison] = ()
    compared: str = ""

    def copies(self, column: int) -> tuple[int, int]:
        """(near copies of training images, images) among those of `column`."""
        found = [row[column].nearest for row in self.cells]
        return sum(one.copy for one in found if one), len(found)

    def judged(self) -> list[Judged]:
        """What the comparisons have found, model by model; [] without training images."""
        found = []
        for place, column in enumerate(self.columns if self.images else ()):
            copies, total = self.copies(place)
            one = Judged(column.stem, total, copies)
            if self.comparisons:
                against = self.comparisons[place]
                one = replace(one, samples=against.samples, nearer=against.nearer, chance=against.chance)
            found.append(one)
        return found


def render(
    columns: Sequence[Column],
    prompts: Sequence[Prompt],
    renderer: Renderer,
    folder: Path,
    *,
    training: TrainingImages | None = None,
    prompted: PromptedImages | None = None,
    salt: str = "",
    progress: Progress = lambda *_: None,
) -> Grid:
    """Draw what is missing in `folder`/images, model by model, and compare. salt: changes when the renderer does.

    prompted: with `training` only.
    Raises UsageError (a model that cannot be used) and ConflictError (disk).
    """
    from PIL import Image

    (folder / IMAGES).mkdir(exist_ok=True)
    cells: list[list[Cell]] = [[] for _ in prompts]
    total, done = len(columns) * len(prompts), 0
    for column in columns:
        loaded = False
        for row, prompt in enumerate(prompts):
            name = f"{IMAGES}/{_key(column, prompt, salt)}.png"
            if not (folder / name).exists():
                if not loaded:
                    renderer.load(column)
                    loaded = True
                _save(renderer.draw(prompt), folder / name)
            cell = Cell(name)
            if training:
                with Image.open(folder / name) as image:
                    cell = Cell(name, training.nearest(image), prompted.likenesses(prompt, image) if prompted else ())
            cells[row].append(cell)
            done += 1
            progress(column.label, done, total)
    return Grid(
        columns, prompts, cells, training.measure.name if training else "", training.folder if training else None,
        _comparisons(cells, len(columns)) if prompted else (), prompted.measure.name if prompted else "",
    )  # fmt: skip


def _comparisons(cells: Sequence[Sequence[Cell]], columns: int) -> list[Comparison]:
    return [compare([row[place].likenesses for row in cells if row[place].likenesses]) for place in range(columns)]


def _key(column: Column, prompt: Prompt, salt: str) -> str:
    text = "\n".join((column.identity, line(prompt), salt))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:20]


def _save(image: Any, path: Path) -> None:
    """Under its name only when it is whole: an image that exists is not rendered again."""
    try:
        with replacing(path) as file:
            image.save(file, "PNG")
    except OSError as error:
        raise ConflictError(f"{path} cannot be written: {error.strerror or error}") from error
