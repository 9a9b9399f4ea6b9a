"""A grid as one PNG (models side by side, prompts below each other, the nearest training image last) and as a page.

The HTML page has thumbnails within it, each a link to its image; nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont, ImageOps

from kohya_ext.evaluation.grid import Cell, Grid
from kohya_ext.evaluation.memorization import Nearest
from kohya_ext.evaluation.promptfile import Prompt
from kohya_ext.files.image import decoding, opened
from kohya_ext.spec.judged import NOT_BY_CHANCE

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

SIDE = 256  # pixels of a thumbnail

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 0; padding: 1.2rem; color: #222; background: #fff }
h1 { font-size: 1.3rem; margin: 0 0 .3rem } p { margin: .3rem 0; max-width: 60rem }
table { border-collapse: separate; border-spacing: 0; margin-top: 1rem }
thead th { position: sticky; top: 0; background: #fff; z-index: 2; text-align: left; vertical-align: bottom;
           padding: .5rem .4rem; border-bottom: 1px solid #ccc; max-width: 256px; overflow-wrap: anywhere }
td { padding: .4rem; vertical-align: top; max-width: 256px } td img { display: block; border-radius: 4px }
tbody th { position: sticky; left: 0; background: #fff; z-index: 1; width: 13rem; min-width: 13rem; padding: .4rem;
           text-align: left; vertical-align: top; font-weight: 400; overflow-wrap: anywhere }
thead th:first-child { left: 0; z-index: 3 }
.section th { font-weight: 600; padding-top: 1.2rem; border-bottom: 1px solid #ddd }
.faint { color: #777; font-size: .85em } .copy img { outline: 3px solid #b00020; outline-offset: -3px }
.copy .faint, .alarm { color: #b00020 } .average { font-style: italic }
.summary td, .summary th { padding: .1rem .8rem .1rem 0 }
.summary th { position: static; min-width: 0; width: auto; border: 0; font-weight: 600; vertical-align: top }
@media (prefers-color-scheme: dark) { body, thead th, tbody th { color: #ddd; background: #1b1b1b }
  thead th, .section th { border-color: #444 } .faint { color: #999 } .copy .faint, .alarm { color: #ff7b8a } }
"""


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


def page(grid: Grid, folder: Path, title: str) -> str:
    """The whole page. folder: where the page will lie, and the images below it."""
    heading = html.escape(title)
    body = [f"<h1>{heading}</h1>", f"<p>{_count(grid)}</p>", *_verdict(grid)]
    body += ["<table>", _head(grid), "<tbody>"]
    width = 1 + len(grid.columns) + (1 if grid.images else 0)
    rows = zip(grid.prompts, grid.cells, strict=True)
    for section, members in groupby(rows, key=lambda row: row[0].section):
        if section:
            body.append(f"<tr class=section><th colspan={width}>{html.escape(section)}</th></tr>")
        body += [_row(grid, prompt, cells, folder) for prompt, cells in members]
    body += ["</tbody>", "</table>"]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{heading}</title>"
    inner = "\n".join(body)
    return (
        f"<!doctype html>\n<html lang=en><head>{head}<style>{STYLE}</style></head>\n<body>\n{inner}\n</body></html>\n"
    )


def _count(grid: Grid) -> str:
    models, prompts = len(grid.columns), len(grid.prompts)
    return f"{prompts} prompts by {models} model{'s' if models != 1 else ''}. An image opens in full size when clicked."


def _verdict(grid: Grid) -> Iterator[str]:
    """Near copies of training images, model by model."""
    if not grid.images:
        return
    yield (
        f"<p>Each image was compared with every training image ({html.escape(grid.measure)}); a near copy, framed in "
        "red, means overtraining. Generic prompts should never give one.</p>"
    )
    if grid.comparisons:
        yield (
            "<p>The images drawn from captions were also compared with the images of these captions, as many training "
            f"as held-out ones ({html.escape(grid.compared)}). A model that has not memorized its training images "
            "draws as near to the ones as to the others, but for chance. p: how often it would be as many if any half "
            f"of these images were taken for the training images; below {NOT_BY_CHANCE:g} it is red.</p>"
        )
    rows = []
    for column, one in zip(grid.columns, grid.judged(), strict=True):
        row = f"<td>{html.escape(column.label)}</td>{_alarm(f'{one.copies} of {one.images}', one.copies > 0)}"
        rows.append(row + (_alarm(one.told(), one.memorizes) if grid.comparisons else ""))
    more = "<th>nearer to a training than to a held-out image</th>" if grid.comparisons else ""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    yield f"<table class=summary><tr><th>model</th><th>near copies</th>{more}</tr>{body}</table>"


def _alarm(text: str, alarming: bool) -> str:
    return f"<td{' class=alarm' if alarming else ''}>{text}</td>"


def _head(grid: Grid) -> str:
    cells = [
        f"<th{' class=average' if column.average else ''} title='{html.escape(str(column.path), quote=True)}'>"
        f"{html.escape(column.label)}</th>"
        for column in grid.columns
    ]
    last = f"<th>{TITLE}</th>" if grid.images else ""
    return f"<thead><tr><th>prompt</th>{''.join(cells)}{last}</tr></thead>"


def _row(grid: Grid, prompt: Prompt, cells: list[Cell] | tuple[Cell, ...] | object, folder: Path) -> str:
    assert isinstance(cells, (list, tuple))
    about = [f"{prompt.width}x{prompt.height}", f"{prompt.steps} steps", f"CFG {prompt.cfg:g}"]
    if prompt.seed is not None:
        about.insert(0, f"seed {prompt.seed}")
    if prompt.negative:
        about.append(f"without: {prompt.negative}")
    head = f"{html.escape(prompt.text)}<div class=faint>{html.escape(', '.join(about))}</div>"
    images = "".join(_cell(one, folder) for one in cells)
    return f"<tr><th>{head}</th>{images}{_training(grid, best(cells))}</tr>"


def _cell(one: Cell, folder: Path) -> str:
    near = one.nearest
    note = f"<div class=faint>{html.escape(near.text)}</div>" if near else ""
    image = _image(folder / one.path)
    link = quote(os.fsencode(one.path))
    return f"<td{' class=copy' if near and near.copy else ''}><a href='{link}'>{image}</a>{note}</td>"


def _training(grid: Grid, nearest: Nearest | None) -> str:
    if not grid.images:
        return ""
    if nearest is None:
        return "<td></td>"
    name = html.escape(nearest.path)
    path = grid.images / nearest.path
    link = html.escape(path.resolve().as_uri(), quote=True)
    kind = " class=copy" if nearest.copy else ""
    return f"<td{kind}><a href='{link}'>{_image(path)}</a><div class=faint>{name}</div></td>"


def _image(path: Path) -> str:
    small = thumbnail(path, SIDE)
    if small is None:
        return "(unreadable)"
    written = io.BytesIO()
    small.save(written, "JPEG", quality=82)
    data = base64.b64encode(written.getvalue()).decode()
    return f"<img alt='' width={small.width} height={small.height} src='data:image/jpeg;base64,{data}'>"
