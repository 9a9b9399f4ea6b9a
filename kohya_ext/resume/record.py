"""Our record in the folder of a state: where in which epoch it was saved, with which random numbers, by what command.

One JSON file, `FILE`, written last. It names every other file of the state with its size, so that a state which is
incomplete, because it was half written or half removed, is recognized.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kohya_ext.core.errors import UsageError
from kohya_ext.spec.secrets import is_secret

FILE = "kohya_ext_resume.json"
FORMAT = 1
_LATER = "checkpoints"  # a field that older records lack
MOST_BYTES = 1 << 28  # of a record that is read: losses of millions of batches


class RecordError(UsageError):
    """The record of a state cannot be read, or the state is incomplete."""


@dataclass(frozen=True)
class Position:
    """Where in the training a state was saved.

    epoch: its index, from 0. batches: how many of its batches have been trained on. over: whether the script had left
    the epoch's batches behind. step: optimizer steps since the start of the training, of `total`. first_step: those
    before the epoch. micro_step: accelerate's count for the accumulation. passes: accelerate's count of the loader's
    iterations. caption_step: the step that the data set knew (token warmup). script_step: the step that the script had
    told the data set's workers.
    """

    epoch: int
    batches: int
    over: bool
    step: int
    total: int
    first_step: int
    micro_step: int = 0
    passes: int = 0
    caption_step: int = 0
    script_step: int = 0


@dataclass(frozen=True)
class RunStart:
    """How the run was started: `words` after the interpreter, from `folder`, with these environment variables.

    omitted: flags whose values are secret and were omitted from `words`.
    """

    python: str
    words: list[str]
    folder: str
    environment: dict[str, str] = field(default_factory=dict)
    omitted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """All of it.

    run: an id that a training keeps through all its resumes. saved_at: seconds since 1970. data: what the order of the
    batches depends on. settings: Kohya's arguments. random: states of the random number generators, by when they were
    taken. losses: what the script averages for its logs. files: the other files of the state -> bytes.
    checkpoints: kind of weights ("raw", "ema") -> name of the file that has been saved of these very weights; only of a
    run that keeps the best of them. Older records lack it.
    """

    run: str
    saved_at: float
    version: str
    position: Position
    launch: RunStart
    data: dict[str, Any]
    settings: dict[str, Any]
    random: dict[str, Any]
    losses: dict[str, Any]
    files: dict[str, int] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)


def sizes(folder: Path) -> dict[str, int]:
    """Every file below `folder` but the record itself -> its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != FILE:
            found[name] = path.stat().st_size
    return found


def write(record: Record, folder: Path) -> None:
    """Write the record of a state whose other files are complete, and force it to the disk."""
    text = json.dumps({"format": FORMAT, **asdict(record), "files": sizes(folder)})
    with (folder / FILE).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def has_record(folder: Path) -> bool:
    """Whether a state was saved by a run with an exact resume."""
    return (folder / FILE).is_file()


def read(folder: Path) -> Record:
    """The record of the state in `folder`. Raises RecordError where there is none or the state is incomplete."""
    path = folder / FILE
    try:
        if not path.is_file():
            raise RecordError(f"{folder} has no {FILE}: it was saved without --kohya_ext_exact_resume, or incompletely")
        if path.stat().st_size > MOST_BYTES:
            raise RecordError(f"{path} has more than {MOST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        record = _parsed(json.loads(text))
        there = sizes(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    wrong = [name for name, size in record.files.items() if there.get(name) != size]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RecordError(f"{folder} is incomplete: {', '.join(wrong[:3])}{more} missing or of another size")
    return record


def _parsed(values: Any) -> Record:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise RecordError("unknown format")
    try:
        given = {one.name: values[one.name] for one in fields(Record) if one.name in values or one.name != _LATER}
        position, launch = Position(**given.pop("position")), RunStart(**given.pop("launch"))
        record = Record(position=position, launch=launch, **given)
    except (KeyError, TypeError) as error:
        raise RecordError(f"incomplete ({error})") from error
    _check(record)
    return record


def _check(record: Record) -> None:
    place, start = record.position, record.launch
    numbers = [value for name, value in asdict(place).items() if name != "over"]
    whole = all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in numbers)
    texts = [record.run, record.version, start.python, start.folder]
    listed = isinstance(start.words, list) and isinstance(start.omitted, list) and bool(start.words)
    named = (start.environment, record.checkpoints)
    dicts = (record.data, record.settings, record.random, record.losses, record.files, *named)
    if (
        not whole
        or not listed
        or not isinstance(place.over, bool)
        or not all(isinstance(value, dict) for value in dicts)
        or not all(isinstance(text, str) for text in [*texts, *start.words, *start.omitted])
        or not all(isinstance(text, str) for pairs in named for pair in pairs.items() for text in pair)
        or not all(isinstance(size, int) for size in record.files.values())
        or isinstance(record.saved_at, bool)
        or not isinstance(record.saved_at, (int, float))
        or not -math.inf < record.saved_at < math.inf  # not NaN either, which has no place in an order
    ):
        raise RecordError("it holds values of a wrong type")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Kohya's arguments as JSON holds them, without secrets: a state may be uploaded."""
    kept = {key: value for key, value in settings.items() if not is_secret(key)}
    made: dict[str, Any] = json.loads(json.dumps(kept, default=str, sort_keys=True))
    return made
