"""A grid: every prompt by every model. Images are kept as files, so that an interrupted grid is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kohya_ext.core.errors import ConflictError
from kohya_ext.evaluation.memorization import Nearest, TrainingImages
from kohya_ext.evaluation.models import Column
from kohya_ext.evaluation.promptfile import Prompt, line
from kohya_ext.files.atomic import replacing

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
    """One image. path: relative to the grid's folder. nearest: None without training images."""

    path: str
    nearest: Nearest | None = None


@dataclass(frozen=True)
class Grid:
    """rows: prompts; cells: for each prompt one for each column. measure: what compared them, "" for nothing."""

    columns: Sequence[Column]
    prompts: Sequence[Prompt]
    cells: Sequence[Sequence[Cell]]
    measure: str = ""
    images: Path | None = None

    def copies(self, column: int) -> tuple[int, int]:
        """(near copies of training images, images) among those of `column`."""
        found = [row[column].nearest for row in self.cells]
        return sum(one.copy for one in found if one), len(found)


def render(
    columns: Sequence[Column],
    prompts: Sequence[Prompt],
    renderer: Renderer,
    folder: Path,
    *,
    training: TrainingImages | None = None,
    salt: str = "",
    progress: Progress = lambda *_: None,
) -> Grid:
    """Draw what is missing in `folder`/images, model by model, and compare. salt: changes when the renderer does.

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
            nearest = None
            if training:
                with Image.open(folder / name) as image:
                    nearest = training.nearest(image)
            cells[row].append(Cell(name, nearest))
            done += 1
            progress(column.label, done, total)
    return Grid(
        columns, prompts, cells, training.measure.name if training else "", training.folder if training else None
    )


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
