"""The record of a run, next to its checkpoints: validations, training losses, settings. Read by `kohya-ext report`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kohya_ext.files.atomic import write_atomic
from kohya_ext.files.regular import file_fault
from kohya_ext.spec.secrets import is_secret

VALIDATIONS, LOSSES, SETTINGS = "-validation.csv", "-losses.csv", "-settings.json"
RAW, EMA, SECOND_EMA = "raw", "ema", "ema2"
_MOST = 1 << 62
LOSS_COLUMNS = ("step", "epoch", "loss")


@dataclass(frozen=True)
class Row:
    """One validation of one kind of weights.

    step: the script's count of optimizer steps. epoch: the one in progress or just ended, from 1; 0 before the first.
    weights: "raw", "ema", or a name of another EMA. low, high: the 95 % interval, both NaN where there is none.
    train_loss: the mean of the script's losses since the validation before, NaN before the first step. seconds: what
    this validation took. elapsed: seconds since the training began, validations included. peak_bytes: the most memory
    that the run has used so far, on the GPU where it has one.
    """

    step: int
    epoch: int
    weights: str
    loss: float
    low: float
    high: float
    train_loss: float
    images: int
    timesteps: int
    seconds: float
    elapsed: float
    peak_bytes: int


COLUMNS = tuple(field.name for field in fields(Row))


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Create or replace the file; a run that is killed meanwhile leaves the old one. Raises OSError."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    write_atomic(path, text.getvalue().encode())


def append(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Add rows at the end. Raises OSError."""
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def drop_from(path: Path, columns: Sequence[str], step: int) -> None:
    """Remove the rows of `step` and later ones. Raises OSError, or ValueError where it is not such a file."""
    kept = [line for line in _lines(path, columns) if str(line["step"]).isdecimal() and int(line["step"]) < step]
    write(path, columns, [[line[column] for column in columns] for line in kept])


def cells(row: Row) -> list[Any]:
    """The row as `write` and `append` take it; Python writes floats such that they are read back exactly."""
    return [asdict(row)[column] for column in COLUMNS]


def validations(path: Path) -> list[Row]:
    """The rows of a file, in order; incomplete lines are skipped, as a killed run leaves one.

    Raises OSError, or ValueError where it is not such a file.
    """
    return [row for line in _lines(path, COLUMNS) if (row := _row(line)) is not None]


def losses(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line. Raises as `validations`."""
    return [point for line in _lines(path, LOSS_COLUMNS) if (point := _point(line)) is not None]


def epoch_ends(path: Path) -> dict[int, int]:
    """Epoch, from 1 -> the last step that a file of losses has of it. Raises as `validations`."""
    ends: dict[int, int] = {}
    for line in _lines(path, LOSS_COLUMNS):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            ends[_count(line["epoch"])] = max(_count(line["step"]), ends.get(_count(line["epoch"]), 0))
    return ends


def _row(line: Mapping[str, Any]) -> Row | None:
    try:
        return Row(
            step=_count(line["step"]), epoch=_count(line["epoch"]),
            weights=str(line["weights"]), loss=float(line["loss"]),
            low=float(line["low"]), high=float(line["high"]), train_loss=float(line["train_loss"]),
            images=_count(line["images"]), timesteps=_count(line["timesteps"]), seconds=float(line["seconds"]),
            elapsed=float(line["elapsed"]), peak_bytes=_count(line["peak_bytes"]),
        )  # fmt: skip
    except (TypeError, ValueError, OverflowError):
        return None


def _count(text: Any) -> int:
    """Raises ValueError for what no run counts to, as in a damaged line."""
    count = int(text)
    if not 0 <= count < _MOST:
        raise ValueError(f"{text} is not a count")
    return count


def _point(line: Mapping[str, Any]) -> tuple[int, float] | None:
    try:
        return _count(line["step"]), float(line["loss"])
    except (TypeError, ValueError, OverflowError):
        return None


def settings_of(script: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """What a run records of its arguments: those that are set, without secrets and without the paths of its machine."""
    given = {
        name: _shown(value)
        for name, value in sorted(args.items())
        if not (value is None or value is False or value in ("", [])) and not is_secret(name)
    }
    return {"script": script, "settings": given}


def settings(path: Path) -> dict[str, str]:
    """What `settings_of` said, for people. Raises OSError, or ValueError where it is not such a file."""
    _require_regular(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or not isinstance(document.get("settings"), dict):
        raise ValueError(f"{path} holds no settings")
    return {"script": str(document.get("script", "")), **{k: str(v) for k, v in document["settings"].items()}}


def _shown(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return " ".join(str(_shown(one)) for one in value)
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value if isinstance(value, (bool, int, float)) else str(value)


def lowest(rows: Iterable[Row]) -> Row | None:
    """The validation with the lowest loss; the first of several. None where no loss is finite."""
    finite = [row for row in rows if math.isfinite(row.loss)]
    return min(finite, key=lambda row: row.loss, default=None)


def _require_regular(path: Path) -> None:
    """Opening a pipe would wait for ever. Raises OSError, or ValueError where it is not a file."""
    if (fault := file_fault(path)) is not None:
        raise ValueError(f"{path} {fault}")


def _lines(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    _require_regular(path)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            reader = csv.DictReader(file)
            if not set(columns) <= set(reader.fieldnames or ()):
                raise ValueError(f"{path} does not have the columns {', '.join(columns)}")
            return list(reader)
        except csv.Error as error:
            raise ValueError(f"{path} is not a CSV file: {error}") from error
