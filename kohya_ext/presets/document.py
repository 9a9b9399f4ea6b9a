"""Preset files: read defensively, since anybody may have written them, and written so that every release can read them.

Kohya's GUIs read presets with the locale's encoding up to v24.0.4 and choke on a byte order mark: we write plain ASCII.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_ext.core.bundle import data_dir
from kohya_ext.core.errors import UsageError, did_you_mean
from kohya_ext.files.regular import read_regular
from kohya_ext.presets.keys import DEAD, PRIVATE, RENAMED
from kohya_ext.presets.schema import TABS, Tab
from kohya_ext.presets.settings import described
from kohya_ext.spec.preset_files import ABOUT

MAX_BYTES = 1024 * 1024  # the largest preset of any release has 12 kB
MAX_DEPTH = 20
MAX_KEYS = 5000  # the largest tab of any release has 288

_STRING = r'"(?:[^"\\]|\\.)*"'
_COMMENT = re.compile(_STRING + r"|//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
_COMMA = re.compile(_STRING + r"|,(?=\s*[}\]])")


@dataclass(frozen=True)
class Preset:
    """Settings of one tab. about: where they come from and what they need; empty for presets of others."""

    name: str
    tab: Tab
    values: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def requires(self) -> tuple[str, ...]:
        """What a release must have for the preset to make sense."""
        needed = self.about.get("requires", ())
        return tuple(str(name) for name in needed) if isinstance(needed, list) else ()


def read_values(path: Path, repairs: list[str] | None = None) -> dict[str, Any]:
    """The settings in a preset file, its `_about` block included.

    repairs: where to note commas too many and comments that are skipped; None = they are errors.
    Raises UsageError when it cannot be read, is too large, is not JSON, or holds something else than settings.
    """
    data = read_regular(path, MAX_BYTES)
    if repairs is not None:
        data = without_slips(data, repairs)
    return parse_values(data, str(path))


def parse_values(data: bytes, origin: str) -> dict[str, Any]:
    """The settings in the bytes of a preset file; `origin` names it in errors. Raises UsageError."""
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{origin}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{origin}: not JSON: {_located(error)}") from error
    except RecursionError as error:
        raise UsageError(f"{origin}: nested too deeply to be a preset") from error
    except ValueError as error:  # an integer of thousands of digits
        raise UsageError(f"{origin}: not a preset: it holds a number of thousands of digits") from error
    if not isinstance(values, dict):
        raise UsageError(f"{origin}: holds a {type(values).__name__}, a preset is an object of settings")
    if len(values) > MAX_KEYS:
        raise UsageError(f"{origin}: {len(values)} settings, no preset has more than {MAX_KEYS}")
    if depth(values) > MAX_DEPTH:
        raise UsageError(f"{origin}: nested too deeply to be a preset")
    return values


def _located(error: json.JSONDecodeError) -> str:
    """What is wrong and where; for the usual slips the slip itself, not the character behind it."""
    before = error.doc[: error.pos].rstrip()
    ends = error.doc[error.pos : error.pos + 1] in ("}", "]")
    if before.endswith(",") and ends and not before.endswith(("{,", "[,")):
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n") - 1
        return f"line {line}, column {column}: a comma with nothing behind it; remove it, `kohya-ext presets fit` does"
    if error.doc[error.pos : error.pos + 1] in ("#", "/"):
        what = "JSON has no comments; remove it, `kohya-ext presets fit` does"
        return f"line {error.lineno}, column {error.colno}: {what}"
    return f"line {error.lineno}, column {error.colno}: {error.msg}"


def without_slips(data: bytes, repairs: list[str]) -> bytes:
    """JSON without comments and without commas before a closing bracket; what was skipped is noted in `repairs`."""
    try:
        text = data.decode("utf-8-sig")
        json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        pass
    except ValueError:
        return data
    else:
        return data
    for pattern, what in ((_COMMENT, "a comment"), (_COMMA, "a comma with nothing behind it")):
        kept, at = [], 0
        for match in pattern.finditer(text):
            if match.group().startswith('"'):
                continue
            line = text.count("\n", 0, match.start()) + 1
            repairs.append(f"line {line}: {what}")
            kept += [text[at : match.start()], "\n" * match.group().count("\n")]
            at = match.end()
        text = "".join([*kept, text[at:]])
    return text.encode()


def other_kind(values: Mapping[str, Any]) -> str:
    """What a file is that holds no setting at all, "" for a preset."""
    if not values or any(key == ABOUT or key in RENAMED or key in DEAD or key in PRIVATE for key in values):
        return ""
    if any(described(key) for key in values):
        return ""
    if all(
        isinstance(value, dict) and {"caption", "tags", "train_resolution"} & set(value) for value in values.values()
    ):
        return "it is the metadata of images, which sd-scripts reads with --in_json"
    if any(str(key).startswith(("ss_", "modelspec.")) for key in values):
        return "it is the metadata of a trained file: what it was trained with, in sd-scripts' words"
    if "nodes" in values and "links" in values:
        return "it is a workflow of ComfyUI"
    if "compute_environment" in values or "distributed_type" in values:
        return "it is a configuration of accelerate"
    return "perhaps it belongs to another program"


def depth(value: Any) -> int:
    """How deeply lists and objects are nested; without recursion, since the input is not ours."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def dump_values(values: Mapping[str, Any]) -> bytes:
    """The bytes of a preset file: ASCII, one setting a line, sorted like upstream's own."""
    return (json.dumps(dict(values), indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode(
        "ascii"
    )


def as_preset(values: Mapping[str, Any], name: str, tab: Tab) -> Preset:
    """Settings as a preset, the `_about` block apart."""
    about = values.get(ABOUT, {})
    settings = {key: value for key, value in values.items() if key != ABOUT}
    return Preset(name, tab, settings, about if isinstance(about, dict) else {})


def bundled() -> Iterator[Preset]:
    """The presets that ship with kohya_ext, by tab and name."""
    folder = data_dir("presets")
    for tab in TABS:
        for path in sorted((folder / tab).glob("*.json")):
            yield as_preset(read_values(path), path.stem, tab)


def find_bundled(name: str) -> Preset:
    """The bundled preset called `name` (any case, with or without its tab in front, as in `lora/NAME`).

    Raises UsageError, with the names there are.
    """
    wanted = name.casefold().removesuffix(".json")
    presets = list(bundled())
    for preset in presets:
        if wanted in (preset.name.casefold(), f"{preset.tab}/{preset.name}".casefold()):
            return preset
    names = [preset.name for preset in presets]
    close = did_you_mean(wanted.rpartition("/")[2], names)
    raise UsageError(f"there is no preset {name!r}{close or ';'} Presets: {', '.join(names)}")


def tab_of(values: Mapping[str, Any], path: Path, given: str | None) -> Tab:
    """The tab a preset file belongs to: as given, by its folder, else by settings that one tab alone has."""
    for tab in TABS:
        if given == tab:
            return tab
    for tab in TABS:
        if tab in path.parts:
            return tab
    if "LoRA_type" in values or "network_dim" in values:
        return "lora"
    if "num_vectors_per_token" in values:
        return "ti"
    return "dreambooth" if "train_data_dir" in values or "reg_data_dir" in values else "finetune"
