"""Prompt files of every kind that sd-scripts takes for sample images: .txt, .toml and .json, by the name's ending.

A TOML file has a table `prompt` with what all prompts share, and a list of tables `prompt.subset`, one for each; a JSON
file is a list of such tables, or of lines as a .txt has them. Keys that no script knows do nothing, as in sd-scripts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.promptfile import (
    Prompt,
    bracketed,
    from_values,
    has_weights,
    joined_flag,
    parse,
    parse_line,
)
from kohya_ext.files.regular import TEXT_LIMIT, read_regular, read_text, toml_loads
from kohya_ext.files.text_encoding import BOM

KNOWN = frozenset(
    (
        "prompt", "negative_prompt", "width", "height", "sample_steps", "scale", "guidance_scale", "seed",
        "sample_sampler", "controlnet_image", "cfg_trunc_ratio", "renorm_cfg", "flow_shift", "enum", "subset",
    )
)  # fmt: skip  # of all scripts and releases
STEPS_LIMIT = 1000
_WHOLE = range(-(2**63), 2**64)  # the seeds that torch takes
_EXAMPLE_TOML = '[prompt]\nwidth = 1024\nheight = 1024\n\n[[prompt.subset]]\nprompt = "a red apple"\nseed = 1'
_EXAMPLE_JSON = '[{"prompt": "a red apple", "width": 1024, "height": 1024, "seed": 1}]'


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file. weighted: Kohya reads brackets in one as weights. ignored: keys that mean nothing.

    joined: flags that are text for Kohya, since the blank before them is missing. marked: it begins with a byte order
    mark, which Kohya takes for the first letter of the first prompt.
    """

    prompts: tuple[Prompt, ...]
    weighted: bool
    ignored: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    marked: bool = False


@dataclass(frozen=True)
class _Table:
    """One prompt of a TOML or JSON file. where: what to call it in errors; shared: keys that another table gave it."""

    where: str
    values: Mapping[str, Any]
    shared: frozenset[str] = frozenset()


def read(path: Path) -> PromptFile:
    """The prompts in the file at `path`. Raises UsageError with the place of what is wrong."""
    text = read_text(path)
    marked = read_regular(path, TEXT_LIMIT).startswith(BOM)
    try:
        if marked and path.suffix in (".toml", ".json"):
            raise UsageError(
                "it begins with a byte order mark, at which sd-scripts stops: save it as UTF-8 without one"
            )
        if path.suffix != path.suffix.lower() in (".toml", ".json"):
            raise UsageError(
                f"sd-scripts knows the kind of a prompt file by an ending in small letters: rename it to {path.stem}"
                f"{path.suffix.lower()}"
            )
        if path.suffix == ".toml":
            return _from_entries(_toml(text))
        if path.suffix == ".json":
            return _from_entries(_json(text))
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return PromptFile(tuple(parse(text)), any(map(has_weights, lines)), joined=_joined(lines), marked=marked)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _from_entries(entries: list[_Table | str]) -> PromptFile:
    if not entries:
        raise UsageError("it contains no prompt")
    prompts = tuple(parse_line(entry) if isinstance(entry, str) else _prompt(entry) for entry in entries)
    weighted = any(
        has_weights(entry) if isinstance(entry, str) else bracketed(entry.values.get("prompt", "")) for entry in entries
    )
    keys = dict.fromkeys(key for entry in entries if isinstance(entry, _Table) for key in entry.values)
    lines = [entry for entry in entries if isinstance(entry, str)]
    return PromptFile(prompts, weighted, tuple(key for key in keys if key not in KNOWN), _joined(lines))


def _joined(lines: list[str]) -> tuple[str, ...]:
    return tuple(filter(None, map(joined_flag, lines)))


def _toml(text: str) -> list[_Table | str]:
    try:
        content = toml_loads(text)
    except ValueError as error:  # its message tells the line
        raise UsageError(f"it is not valid TOML: {error}") from error
    shared = content.get("prompt")
    subsets = shared.get("subset") if isinstance(shared, Mapping) else None
    if not isinstance(shared, Mapping) or not isinstance(subsets, list):
        raise UsageError(f"it has no list [[prompt.subset]], one for each prompt, as in\n\n{_EXAMPLE_TOML}\n")
    entries: list[_Table | str] = []
    for number, subset in enumerate(subsets, 1):
        where = f"[[prompt.subset]] number {number}"
        if not isinstance(subset, Mapping):
            raise UsageError(f"{where} is not a table")
        if twice := next((key for key in subset if key in shared), None):
            raise UsageError(f"{where}: {twice} is in [prompt] as well, at which sd-scripts stops: keep one of them")
        entries.append(_Table(where, {**shared, **subset}, frozenset(shared)))
    return entries


def _json(text: str) -> list[_Table | str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"it is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        raise UsageError("it is not valid JSON: a number is too long, or it is nested too deeply") from error
    if not isinstance(content, list):
        raise UsageError(f"sd-scripts reads a list of prompts from a .json file, as in {_EXAMPLE_JSON}")
    entries: list[_Table | str] = []
    for number, entry in enumerate(content, 1):
        if isinstance(entry, Mapping):
            entries.append(_Table(f"prompt {number}", entry))
        elif isinstance(entry, str):
            entries.append(entry)
        else:
            raise UsageError(f"prompt {number} is neither a text nor an object with the key prompt")
    return entries


def _prompt(entry: _Table) -> Prompt:
    """Keys, defaults and types as sd-scripts' own; its limits for lines do not hold here, those of its pipeline do."""
    steps = _whole(entry, "sample_steps", Prompt.steps)
    if not 1 <= steps <= STEPS_LIMIT:
        raise _wrong(entry, "sample_steps", f"a number from 1 to {STEPS_LIMIT}")
    return from_values(
        _text(entry, "prompt"), _text(entry, "negative_prompt"), _whole(entry, "width", Prompt.width),
        _whole(entry, "height", Prompt.height), steps, _number(entry, "scale"),
        None if entry.values.get("seed") is None else _whole(entry, "seed", 0),
    )  # fmt: skip


def _text(entry: _Table, key: str) -> str:
    value = entry.values.get(key, "")
    if value is None and key != "prompt":
        return ""
    if not isinstance(value, str):
        raise _wrong(entry, key, "a text")
    return value


def _whole(entry: _Table, key: str, default: int) -> int:
    value = entry.values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(entry, key, "a whole number")
    if value not in _WHOLE:
        raise _wrong(entry, key, "a number of at most 64 bits")
    return value


def _number(entry: _Table, key: str) -> float:
    value = entry.values.get(key, Prompt.cfg)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < math.inf:
        raise _wrong(entry, key, "a number")
    return float(value)


def _wrong(entry: _Table, key: str, wanted: str) -> UsageError:
    where = "[prompt]" if key in entry.shared else entry.where
    return UsageError(f"{where}: {key} = {_shown(entry.values[key])} is not {wanted}")


def _shown(value: Any) -> str:
    """A value for an error, however large or deep the file has made it."""
    if isinstance(value, int) and value not in _WHOLE:
        return "a huge number"
    return repr(value)[:40] if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
