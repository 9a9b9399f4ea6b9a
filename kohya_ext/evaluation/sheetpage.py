"""A grid as an HTML page: thumbnails within it, each a link to its image; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from kohya_ext.evaluation.grid import Cell, Grid
from kohya_ext.evaluation.memorization import Nearest
from kohya_ext.evaluation.promptfile import Prompt
from kohya_ext.evaluation.sheet import TITLE, best, thumbnail

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
    rows = []
    for place, column in enumerate(grid.columns):
        copies, total = grid.copies(place)
        alarm = " class=alarm" if copies else ""
        rows.append(f"<tr><td>{html.escape(column.label)}</td><td{alarm}>{copies} of {total}</td></tr>")
    yield f"<table class=summary><tr><th>model</th><th>near copies</th></tr>{''.join(rows)}</table>"


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
    pictures = "".join(_picture(one, folder) for one in cells)
    return f"<tr><th>{head}</th>{pictures}{_training(grid, best(cells))}</tr>"


def _picture(one: Cell, folder: Path) -> str:
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
