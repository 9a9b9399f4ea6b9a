"""Names of EMA files: `NAME-ema` is treated as an output name of its own, so that upstream's rotation works for it."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

SUFFIX = "-ema"

# what upstream calls a file when there is no --output_name: per kind of save
EPOCH, STEP, LAST = "epoch", "at", "last"

_COUNTED = re.compile(r"-(?P<epoch>\d{6})$|-step(?P<step>\d{8})$")


def args_of_average(args: argparse.Namespace, default_name: str) -> argparse.Namespace:
    """A copy of Kohya's args that names the EMA's files and saves no state (the raw call has done that)."""
    changed = copy.copy(args)
    changed.output_name = (args.output_name or default_name) + SUFFIX
    changed.save_state = False
    return changed


def file_of_average(file: str, output_name: str | None) -> str:
    """The EMA file next to a raw one: `NAME-step00000002.safetensors` -> `NAME-ema-step00000002.safetensors`."""
    path = Path(file)
    name, counted = _split(path.stem, output_name)
    return str(path.with_name(name + SUFFIX + counted + path.suffix))


def is_last(file: str, output_name: str | None) -> bool:
    """Whether `file` is what a run leaves at its end: upstream numbers all others."""
    return not _split(Path(file).stem, output_name)[1]


def outlived_by(file: str, output_name: str | None, args: argparse.Namespace) -> str | None:
    """The older file that upstream removes once `file` is saved, by its rules for `--save_last_n_epochs / _steps`.

    Epochs are kept by their count, steps by their distance. None where nothing is removed.
    """
    path = Path(file)
    name, counted = _split(path.stem, output_name)
    match = _COUNTED.match(counted)
    kind = None if match is None else match.lastgroup
    kept = getattr(args, f"save_last_n_{kind}s", None)
    every = getattr(args, f"save_every_n_{kind}s", None)
    if match is None or not kept or not every:
        return None
    number = int(match[match.lastgroup or 0])
    old = number - kept * every if kind == "epoch" else (number - kept - 1) // every * every
    if old < 0:
        return None
    return str(path.with_name(name + (f"-{old:06d}" if kind == "epoch" else f"-step{old:08d}") + path.suffix))


def _split(stem: str, output_name: str | None) -> tuple[str, str]:
    """The output's name and the number that follows it, which may be empty."""
    if output_name and stem.startswith(output_name):
        return output_name, stem[len(output_name) :]
    match = _COUNTED.search(stem)
    return (stem[: match.start()], match.group()) if match else (stem, "")
