"""The models of a grid, one a column: the raw file before its EMA, both epoch by epoch.

File names are read as sd-scripts and our EMA files have them: `NAME-000010`, `NAME-step00000200`, `NAME-ema-000010`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.spec.outputs import EMA_SUFFIX, MOST_EMAS, SAVED, ema_suffix
from kohya_ext.tensors import adapters
from kohya_ext.tensors.families import refuse_refiner
from kohya_ext.tensors.header import is_pickle, read_header

FOLDER, CHECKPOINT, LORA = "diffusers folder", "checkpoint", "LoRA"
INDEX = "model_index.json"
SUFFIX = ".safetensors"
_LAST = 10**9  # a file without a number is the end of its run


@dataclass(frozen=True)
class Column:
    """One model. order: epoch or step, _LAST for the file at the end. sdxl: the family, as far as the file tells."""

    path: Path
    kind: str
    name: str
    order: int
    average: bool
    label: str
    sdxl: bool = True

    @property
    def stem(self) -> str:
        """Its file's name without the ending."""
        return _stem(self.path)

    @property
    def identity(self) -> str:
        """Changes when the model does; without reading it."""
        file = self.path / INDEX if self.kind == FOLDER else self.path
        found = file.stat()
        return f"{self.path.resolve()}|{found.st_size}|{found.st_mtime_ns}"


def columns(paths: Sequence[Path], *, averages: bool = True) -> list[Column]:
    """A column for each model, with the EMAs next to them unless not wanted. Raises UsageError for what is none.

    Runs keep the order in which they are given, each by epoch or step, raw before EMA. A folder of diffusers
    is a model; of any other folder all models in it are taken.
    """
    found: dict[Path, Column] = {}
    for path in _expanded(paths):
        for one in (path, *(_averages_of(path) if averages else ())):
            if one.resolve() not in found:
                found[one.resolve()] = _column(one)
    runs = {name: place for place, name in reversed(list(enumerate(column.name for column in found.values())))}
    return sorted(
        found.values(), key=lambda column: (runs[column.name], column.order, column.average, str(column.path))
    )


def _expanded(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        if not path.is_dir() or (path / INDEX).is_file():
            yield path
            continue
        inside = sorted(path.glob(f"*{SUFFIX}")) + sorted(one.parent for one in path.glob(f"*/{INDEX}"))
        if not inside:
            raise UsageError(f"{path} contains no model: no *{SUFFIX} and is not a diffusers folder ({INDEX})")
        yield from inside


def _averages_of(path: Path) -> Iterator[Path]:
    """The files of the EMAs next to a raw one."""
    match = _match(path)
    for suffix in () if match["ema"] else map(ema_suffix, range(MOST_EMAS)):
        number = _stem(path)[match.end("name") :]
        beside = path.with_name(f"{match['name']}{suffix}{number}{path.suffix if path.is_file() else ''}")
        if beside.exists():
            yield beside


def _column(path: Path) -> Column:
    match = _match(path)
    number = match["epoch"] or match["step"]
    when = f"epoch {int(match['epoch'])}" if match["epoch"] else f"step {int(match['step'])}" if match["step"] else ""
    label = ", ".join(
        part
        for part in (
            match["name"],
            when,
            f"EMA {match['ema'].removeprefix(EMA_SUFFIX)}".strip() if match["ema"] else "",
        )
        if part
    )
    kind, sdxl = _kind(path)
    if kind != LORA:
        refuse_refiner(path)
    return Column(path, kind, match["name"], int(number) if number else _LAST, bool(match["ema"]), label, sdxl)


def _kind(path: Path) -> tuple[str, bool]:
    if path.is_dir():
        return FOLDER, True
    if is_pickle(path):
        raise UsageError(f"{path} is a pickle (.ckpt), which can run code and is not opened; convert it to {SUFFIX}")
    header = read_header(path)
    keys = header.entries
    if adapters.is_adapter(keys, header.metadata):
        return LORA, any("lora_te2_" in key or "text_encoder_2" in key for key in keys)
    return CHECKPOINT, any(key.startswith("conditioner.") for key in keys)


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _match(path: Path) -> re.Match[str]:
    match = SAVED.fullmatch(_stem(path))
    if match is None:  # an empty name
        raise UsageError(f"{path} has no file name")
    return match
