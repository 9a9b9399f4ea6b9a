"""What a preset says about itself, under the GUI's list of presets as it is chosen there; and that list in order.

A preset that says something has it in its own file, under a key that the GUI ignores. All of it is given to the page as
the GUI starts, so choosing one asks nobody. Where it fails, the tab is as Kohya made it.
"""

from __future__ import annotations

import html
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kohya_ext.core.about import MANIFEST
from kohya_ext.runtime.page import on, within
from kohya_ext.spec.measurements import FILE_NAME, newest
from kohya_ext.spec.optimizers import ours
from kohya_ext.spec.preset_files import (
    ABOUT,
    BASE_MODEL,
    FILL_IN,
    MEASURED_AS,
    NO_PRESET,
    PRESETS_LABEL,
    USER_PRESETS,
)

LARGEST = 1024 * 1024  # bytes of a file; the largest preset of any release has 12 kB
NEEDS = {
    "AdaCoor": "AdaCoor, the optimizer of kohya_ext",
    "EMA": "the EMA of kohya_ext",
    "fused_backward_pass": "the fused backward pass of sd-scripts",
}
DOWNLOADED = "downloaded at the first training; choose another if you have one"


def advanced_training(original: Callable[..., None], tab: Any, *args: Any, **kwargs: Any) -> None:
    """Kohya's constructor of the advanced settings; the list of presets, if the tab has one, was made before."""
    original(tab, *args, **kwargs)
    context = importlib.import_module("gradio.context").Context
    place, listed = _presets_list(context.block)
    if listed is None:
        return
    file = sys.modules[type(tab).__module__].__file__
    root = Path(str(file)).resolve().parents[1]
    presets, measured = _read(root / "presets", [_value(one) for one in listed.choices]), _measurements(root)
    texts = [[name, explained(values[ABOUT], measured)] for name, values in presets.items() if _says_something(values)]
    choices = sorted(listed.choices, key=lambda one: _order(_value(one), presets))
    with within(context, place):
        note = importlib.import_module("gradio").HTML(value="")
        place.children.insert(place.children.index(listed) + 1, place.children.pop())
        on(listed.change, f"(name) => [new Map({json.dumps(texts)}).get(name) || '']", [listed], [note])
        listed.choices = choices


def _measurements(root: Path) -> list[str]:
    """Lines that runs of this checkout have left about their memory and their speed."""
    try:
        return ((root / MANIFEST).parent / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _presets_list(block: Any) -> tuple[Any, Any]:
    """The list of presets and the container that holds it, of those around `block`; None for both in other tabs."""
    while block is not None:
        for child in block.children:
            if getattr(child, "label", None) == PRESETS_LABEL and isinstance(getattr(child, "choices", None), list):
                return block, child
        block = block.parent
    return None, None


def _value(choice: Any) -> str:
    """What a choice stands for; newer versions of gradio keep it with its label."""
    return str(choice if isinstance(choice, str) else choice[-1])


def _read(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The presets of these names that can be read, from the tab's folder: the one that has most of them."""
    found: dict[Path, dict[str, Path]] = {}
    for tab in sorted(folder.iterdir()) if folder.is_dir() else ():
        files = {name: tab / f"{name}.json" for name in names}
        found[tab] = {name: path for name, path in files.items() if path.is_file()}
    files = max(found.values(), key=len, default={})
    return {name: values for name, path in files.items() if (values := _values(path)) is not None}


def _values(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _says_something(values: dict[str, Any]) -> bool:
    return isinstance(values.get(ABOUT), dict)


def _order(name: str, presets: dict[str, dict[str, Any]]) -> tuple[Any, ...]:
    """No preset; those that say something, by the memory they need; the user's others; Kohya's."""
    values = presets.get(name, {})
    natural = [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name.casefold())]
    if name in NO_PRESET:
        return 0, 0, False, natural
    if _says_something(values):
        return 1, _memory(values[ABOUT]), ours(values.get("optimizer")) is None, natural
    return (2 if name.startswith(USER_PRESETS) else 3), 0, False, natural


def _memory(about: dict[str, Any]) -> float:
    memory = about.get("vram")
    size = memory.get("tier_gb") if isinstance(memory, dict) else None
    return size if isinstance(size, (int, float)) else 0


def explained(about: dict[str, Any], measured: Sequence[str] = ()) -> str:
    """What a preset says about itself, as HTML. It is anybody's file: nothing in it is taken for markup.

    measured: lines of what runs have measured here.
    """
    found = newest(measured, str(about.get(MEASURED_AS)))
    here = "" if found is None else f"<p><b>Measured here:</b> {_text(str(found))}</p>"
    return "".join((*_parts(about), here))


def _parts(about: dict[str, Any]) -> Iterator[str]:
    title, origin = _text(about.get("title")), _text(about.get("origin"))
    if title or origin:
        yield f"<p><b>{title}</b>{f' ({origin})' if origin else ''}</p>"
    for warning in _texts(about.get("warnings")):
        yield f"<p><b>Warning:</b> {warning}</p>"
    memory = about.get("vram")
    if isinstance(memory, dict):
        size = f"for a card with {_memory(about):g} GB; " if _memory(about) else ""
        basis = _text(memory.get("estimate"))
        yield f"<details><summary><b>Memory:</b> {size}what needs it</summary><p>{basis}</p></details>"
    if fields := _texts(about.get(FILL_IN)):
        yield f"<p><b>Fill in:</b> {', '.join(fields)}</p>"
    if model := _text(about.get(BASE_MODEL)):
        yield f"<p><b>Base model:</b> {model}, {DOWNLOADED}</p>"
    if needs := [NEEDS.get(name, name) for name in _texts(about.get("requires"))]:
        yield f"<p><b>Needs:</b> {', '.join(needs)}</p>"
    if notes := "".join(f"<li>{note}</li>" for note in _texts(about.get("notes"))):
        yield f"<ul>{notes}</ul>"
    if after := _text(about.get("extract")):
        command = _text(about.get("extract_command"))
        yield f"<p><b>Afterwards:</b> {after}{f'<br><code>{command}</code>' if command else ''}</p>"


def _text(value: Any) -> str:
    return html.escape(value) if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    return [text for one in value if (text := _text(one))] if isinstance(value, list) else []
