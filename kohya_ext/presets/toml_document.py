"""TOML files of sd-scripts: settings for `--config_file`, data sets for `--dataset_config`, told apart and read.

sd-scripts reads them with the package `toml`, which is stricter than TOML: every item of a list must be of one kind,
and a byte order mark becomes a part of the first key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kohya_ext.core.errors import UsageError
from kohya_ext.files.regular import read_regular, toml_loads
from kohya_ext.presets.document import MAX_DEPTH, depth
from kohya_ext.presets.findings import Finding

Kind = Literal["training", "dataset"]

MAX_BYTES = 1024 * 1024
MARK = b"\xef\xbb\xbf"
FIT = "`kohya-ext presets fit` does"

_LINE = re.compile(r"line (\d+)")
_PATH = re.compile(r'^(\s*[\w.-]+\s*=\s*)"([^"\n]*\\[^"\n]*)"(?=\s*(?:#.*)?$)')
_ESCAPE = re.compile(r"\\(?:[btnfr\"\\]|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|(\\)")
_WORD = re.compile(r"^(\s*[\w.-]+\s*=\s*)(True|False|TRUE|FALSE|None|null|nil)(?=\s*(?:#.*)?$)")

# Tables that give a file of another program away, all of them in one row, and what it is.
OTHERS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"build-system"}), "it describes a Python project"),
    (frozenset({"project", "tool"}), "it describes a Python project"),
    (frozenset({"general_args"}), "it is a file of LoRA_Easy_Training_Scripts"),
    (frozenset({"subsets"}), "it is a file of LoRA_Easy_Training_Scripts"),
    (frozenset({"model", "accelerate_launch"}), "it holds the GUI's own defaults, which are its config.toml"),
    (frozenset({"model", "dataset_preparation"}), "it holds the GUI's own defaults, which are its config.toml"),
    (frozenset({"model", "configuration"}), "it holds the GUI's own defaults, which are its config.toml"),
)
MUSUBI = frozenset({"image_directory", "video_directory", "image_jsonl_file", "video_jsonl_file", "cache_directory"})


@dataclass(frozen=True)
class TomlDocument:
    """A TOML file. marked: whether it begins with a byte order mark."""

    name: str
    path: Path
    kind: Kind
    content: Mapping[str, Any]
    marked: bool = False


def read_document(path: Path, repairs: list[str] | None = None) -> TomlDocument:
    """A TOML file of sd-scripts.

    repairs: where to note slips that are mended; None = they are errors. Raises UsageError where it cannot be read,
    is not TOML, or belongs to another program.
    """
    data = read_regular(path, MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    try:
        content = toml_loads(text)
    except ValueError as error:
        if repairs is None:
            raise UsageError(f"{path}: not TOML: {_located(error, text)}") from error
        text = without_slips(text, repairs)
        try:
            content = toml_loads(text)
        except ValueError as still:
            raise UsageError(f"{path}: not TOML: {_located(still, text)}") from still
    marked = data.startswith(MARK)
    if marked and repairs is not None:
        repairs.append("line 1: a byte order mark")
    kind = kind_of(content, path)
    return TomlDocument(path.stem, path, kind, _without_dates(content), marked)


def kind_of(content: Mapping[str, Any], path: Path) -> Kind:
    """Raises UsageError for a file of another program, with what it seems to be."""
    datasets = content.get("datasets")
    if isinstance(datasets, list):
        if any(isinstance(one, dict) and MUSUBI & set(one) for one in datasets):
            raise UsageError(f"{path}: not for sd-scripts: it is a data set of musubi-tuner")
        return "dataset"
    tables = {key for key, value in content.items() if isinstance(value, (dict, list))}
    strange = next((text for given, text in OTHERS if given <= tables), None)
    if strange is not None:
        raise UsageError(f"{path}: not settings of sd-scripts: {strange}")
    prompts = content.get("prompt")
    if isinstance(prompts, dict) and isinstance(prompts.get("subset"), list):
        raise UsageError(f"{path}: not settings of sd-scripts: these are sample prompts, for --sample_prompts")
    if depth(content) > MAX_DEPTH:
        raise UsageError(f"{path}: nested too deeply for settings of sd-scripts")
    if not content:
        raise UsageError(f"{path}: holds no settings")
    return "training"


def wrong_data_set(value: Any) -> str:
    """Why a file cannot be a data set configuration, "" where nothing is known against it."""
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or path.suffix.lower() != ".toml" or not path.is_file():
        return ""
    try:
        document = read_document(path)
    except UsageError as error:
        return str(error).removeprefix(f"{path}: ")
    return (
        "" if document.kind == "dataset" else "it holds settings of a training, for --config_file, and no [[datasets]]"
    )


def data_set_finding(values: Mapping[str, Any]) -> Iterator[Finding]:
    """A file given as the data set configuration that is something else."""
    key = "dataset_config"
    if reason := wrong_data_set(values.get(key)):
        effect = f"training stops when it reads this as a data set configuration: {reason}"
        yield Finding(
            "error", "not-a-data-set", key, values[key], effect, "name a file with [[datasets]], or leave it empty"
        )


def _without_dates(value: Any) -> Any:
    """Dates and times, which no setting takes, as texts."""
    if isinstance(value, dict):
        return {key: _without_dates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_dates(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


def _located(error: ValueError, text: str) -> str:
    """What the reader says, and for the usual slips what to write instead."""
    place = _LINE.search(str(error))
    lines = text.splitlines()
    line = lines[int(place.group(1)) - 1] if place and 0 < int(place.group(1)) <= len(lines) else ""
    if _badly_escaped(line):
        return f"{error}: a backslash in double quotes; write the path with / or in single quotes, {FIT}"
    if _WORD.match(line):
        return f"{error}: TOML writes true and false in lower case and has no null; {FIT}"
    return str(error)


def _badly_escaped(line: str) -> bool:
    match = _PATH.match(line)
    return match is not None and any(found.group(1) for found in _ESCAPE.finditer(match.group(2)))


def without_slips(text: str, repairs: list[str]) -> str:
    """TOML with badly escaped paths in single quotes, and with switches in lower case."""
    lines = text.split("\n")
    for at, line in enumerate(lines):
        ending = "\r" if line.endswith("\r") else ""
        bare = line.removesuffix("\r")
        path, word = _PATH.match(bare), _WORD.match(bare)
        if path is not None and _badly_escaped(bare) and "'" not in path.group(2):
            lines[at] = f"{path.group(1)}'{path.group(2)}'{bare[path.end() :]}{ending}"
            repairs.append(f"line {at + 1}: backslashes in double quotes")
        elif word is not None:
            switch = word.group(2).lower()
            named = switch in ("true", "false")
            lines[at] = f"{word.group(1)}{switch}{bare[word.end() :]}{ending}" if named else ending
            repairs.append(f"line {at + 1}: {word.group(2)}")
    return "\n".join(lines)


def reader_findings(document: TomlDocument) -> Iterator[Finding]:
    """What the reader of sd-scripts does not take, though it is TOML."""
    if document.marked:
        effect = (
            "sd-scripts takes the byte order mark for a part of the first key or table: it is lost, or reading fails"
        )
        yield Finding("error", "byte-order-mark", "", None, effect, f"save the file as UTF-8 without BOM; {FIT}")
    for key, items in _lists(document.content):
        kinds = {type(item) for item in items}
        if len(kinds) > 1:
            names = ", ".join(sorted(one.__name__ for one in kinds))
            effect = f"sd-scripts cannot read the file: its TOML reader wants one kind of item in a list, not {names}"
            yield Finding("error", "mixed-list", key, items, effect, "write all items alike, as in [1.0, 0.5]")


def _lists(content: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Every list, those in lists too; without recursion, since the input is not ours."""
    level: list[tuple[str, Any]] = list(content.items())
    while level:
        key, value = level.pop()
        if isinstance(value, dict):
            level += value.items()
        elif isinstance(value, list):
            yield key, value
            level += [(key, item) for item in value if isinstance(item, (dict, list))]


def alike(value: Any) -> Any:
    """A list whose numbers are all written alike; anything else as it is."""
    numbers = isinstance(value, list) and all(type(item) in (int, float) for item in value)
    return [float(item) for item in value] if numbers and len({type(item) for item in value}) > 1 else value


def dump_toml(content: Mapping[str, Any], above: str = "") -> str:
    """TOML of plain settings first, then of the tables and lists of tables in it."""
    plain = {key: value for key, value in content.items() if not _is_table(value)}
    text = "".join(f"{_key(key)} = {toml_value(value)}\n" for key, value in plain.items())
    for key, value in content.items():
        name = f"{above}{_key(key)}"
        for table in (value if isinstance(value, list) else [value]) if _is_table(value) else ():
            brackets = ("[[", "]]") if isinstance(value, list) else ("[", "]")
            inside = dump_toml(table, f"{name}.")
            text += f"{'' if not text else chr(10)}{brackets[0]}{name}{brackets[1]}\n{inside}"
    return text


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def toml_value(value: Any) -> str:
    """A string, number, switch or list of these as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {toml_value(item)}' for key, item in value.items())} }}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
