"""A grid as one PNG: models side by side, prompts below each other, the nearest training image in the last column."""

from __future__ import annotations

import contextlib
import io
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from kohya_ext.evaluation.grid import Cell, Grid
from kohya_ext.evaluation.memorization import Nearest
from kohya_ext.files.image import decoding, opened

CELL = 256  # pixels, of the longer side of an image
GAP = 8
MARGIN = 220  # for the prompts
HEAD = 56
LINES = 14  # of a prompt
LINE = 17  # pixels from one to the next
LABELLED = 6 * LINE  # height of a row that has room for the name of its section
LIMIT = 30_000  # pixels, of a side: what viewers still open
BACKGROUND, INK, FAINT, ALARM = "#ffffff", "#222222", "#777777", "#b00020"
TITLE = "nearest training image"
# what Linux, Windows and macOS have; the font within Pillow knows no letters but those of English
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial Unicode.ttf")


def draw(grid: Grid, folder: Path) -> bytes:
    """The sheet as the bytes of a PNG. Images shrink when it would be larger than viewers open."""
    width_in_cells = len(grid.columns) + (1 if grid.images else 0)
    cell = min(CELL, (LIMIT - MARGIN) // width_in_cells - GAP, (LIMIT - HEAD) // max(1, len(grid.prompts)) - GAP)
    cell = max(cell, 16)
    size = (MARGIN + width_in_cells * (cell + GAP) + GAP, HEAD + len(grid.prompts) * (cell + GAP))
    sheet = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), _font(13)
    for place, label in enumerate([column.label for column in grid.columns] + ([TITLE] if grid.images else [])):
        _text(pen, (MARGIN + place * (cell + GAP), GAP), label, cell, font, lines=2)
    before = ""
    for row, (prompt, cells) in enumerate(zip(grid.prompts, grid.cells, strict=True)):
        top = HEAD + row * (cell + GAP)
        below = top
        if prompt.section != before:
            pen.line((GAP, top - GAP // 2, size[0] - GAP, top - GAP // 2), fill=FAINT)
            before = prompt.section
            if before and cell >= LABELLED:
                _text(pen, (GAP, top), before, MARGIN - 2 * GAP, font, lines=1, fill=FAINT)
                below += LINE
        seed = "" if prompt.seed is None else f"\nseed {prompt.seed}"
        lines = min(LINES, (top + cell - below) // LINE)
        _text(pen, (GAP, below), f"{prompt.text}{seed}", MARGIN - 2 * GAP, font, lines=lines)
        for place, one in enumerate(cells):
            _paste(sheet, folder / one.path, (MARGIN + place * (cell + GAP), top), cell, _is_copy(one))
        if nearest := best(cells):
            assert grid.images is not None
            left = MARGIN + len(cells) * (cell + GAP)
            _paste(sheet, grid.images / nearest.path, (left, top), cell, nearest.copy)
            pen.rectangle((left, top + cell - 18, left + cell - 1, top + cell - 1), fill=BACKGROUND)
            pen.text((left + 3, top + cell - 17), nearest.text, fill=ALARM if nearest.copy else INK, font=font)
    written = io.BytesIO()
    sheet.save(written, "PNG", optimize=True)
    return written.getvalue()


def best(cells: list[Cell] | tuple[Cell, ...] | Any) -> Nearest | None:
    """The training image that any image of a row comes nearest to."""
    found = [one.nearest for one in cells if one.nearest]
    return max(found, key=lambda one: one.likeness) if found else None


def thumbnail(path: Path, side: int) -> Image.Image | None:
    """The image within side x side pixels, turned as a viewer turns it; None when it cannot be read."""
    try:
        with opened(path) as image, decoding(image, reduced_to=side):
            if image.mode.startswith("I"):  # 16 bits a channel, which a conversion would clip to white
                image = image.convert("I").point(lambda value: value / 256).convert("L")
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((side, side))
            return small
    except Exception:  # decoders raise what they like on broken input
        return None


def _is_copy(one: Cell) -> bool:
    return bool(one.nearest and one.nearest.copy)


def _paste(sheet: Image.Image, path: Path, corner: tuple[int, int], cell: int, alarm: bool) -> None:
    small = thumbnail(path, cell)
    if small is None:
        return
    left, top = corner[0] + (cell - small.width) // 2, corner[1] + (cell - small.height) // 2
    sheet.paste(small, (left, top))
    if alarm:
        box = (left, top, left + small.width - 1, top + small.height - 1)
        ImageDraw.Draw(sheet).rectangle(box, outline=ALARM, width=3)


def _text(pen: Any, corner: tuple[int, int], text: str, width: int, font: Any, *, lines: int, fill: str = INK) -> None:
    wrapped = _wrapped(text, width, font)
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and font.getlength(f"{last} ...") > width:
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], f"{last} ..."]
    pen.multiline_text(corner, "\n".join(wrapped), fill=fill, font=font, spacing=3)


def _wrapped(text: str, width: int, font: Any) -> list[str]:
    """Lines of at most `width` pixels, unless not even eight letters fit."""
    for letters in range(max(8, width // 4), 7, -1):
        lines = [part for piece in text.splitlines() for part in textwrap.wrap(piece, letters)]
        if all(font.getlength(line) <= width for line in lines):
            break
    return lines


def _font(size: int) -> Any:
    for name in FONTS:
        with contextlib.suppress(OSError, ImportError):  # no such font, or a Pillow without FreeType
            return ImageFont.truetype(name, size)
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()
