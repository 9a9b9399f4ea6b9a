"""Names of EMA files: `NAME-ema` is treated as an output name of its own, so that upstream's rotation works for it."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

SUFFIX = "-ema"

# what upstream calls a file when there is no --output_name: per kind of save
EPOCH, STEP, LAST = "epoch", "at", "last"

_COUNTED = re.compile(r"-\d{6}$|-step\d{8}$")


def args_of_average(args: argparse.Namespace, default_name: str) -> argparse.Namespace:
    """A copy of Kohya's args that names the EMA's files and saves no state (the raw call has done that)."""
    changed = copy.copy(args)
    changed.output_name = (args.output_name or default_name) + SUFFIX
    changed.save_state = False
    return changed


def file_of_average(file: str, output_name: str | None) -> str:
    """The EMA file beside a raw one: `NAME-step00000002.safetensors` -> `NAME-ema-step00000002.safetensors`."""
    path = Path(file)
    name, counted = path.stem, ""
    if output_name and name.startswith(output_name):
        name, counted = output_name, name[len(output_name) :]
    elif match := _COUNTED.search(name):
        name, counted = name[: match.start()], match.group()
    return str(path.with_name(name + SUFFIX + counted + path.suffix))
