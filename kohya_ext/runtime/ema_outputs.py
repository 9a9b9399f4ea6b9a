"""The EMA's files: their names, and a twin for each file that a script writes, uploaded and rotated along with it.

`NAME-ema` is treated as an output name of its own, so that upstream's rotation works for it. `Twins` is for everything
that is not a full checkpoint: those go through savers of Kohya's that do all this themselves.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kohya_ext.runtime import averaging, safe_save

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average
from kohya_ext.runtime.options import EmaOptions
from kohya_ext.runtime.safe_save import unwinding_on_sigterm
from kohya_ext.spec.outputs import COUNTED, EMA_SUFFIX, NAMELESS_LAST, NAMELESS_STEP

# what upstream calls a file when there is no --output_name: per kind of save
EPOCH, STEP, LAST = "epoch", NAMELESS_STEP, NAMELESS_LAST

_COUNTED = re.compile(rf"(?:{COUNTED})$")


def args_of_average(args: argparse.Namespace, default_name: str, suffix: str = EMA_SUFFIX) -> argparse.Namespace:
    """A copy of Kohya's args that names the EMA's files and saves no state (the raw call has done that)."""
    changed = copy.copy(args)
    changed.output_name = (args.output_name or default_name) + suffix
    changed.save_state = False
    return changed


def file_of_average(file: str, output_name: str | None, suffix: str = EMA_SUFFIX) -> str:
    """The EMA file next to a raw one: `NAME-step00000002.safetensors` -> `NAME-ema-step00000002.safetensors`."""
    path = Path(file)
    name, counted = _split(path.stem, output_name)
    return str(path.with_name(name + suffix + counted + path.suffix))


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


def ready_ones(*, say_so: bool = False) -> list[Average]:
    """The EMAs of this run from which there is something to save. say_so: tell where there is none yet."""
    return [average for average in averaging.kept() if average.ready(say_so=say_so and average.place == 0)]


class Twins:
    """Saves raw and EMA files of one run as `--ema_save` says."""

    def __init__(self, args: argparse.Namespace, settings: EmaOptions) -> None:
        self.args, self.settings = args, settings

    def save(self, file: str, write: Callable[[str, Average | None], object]) -> None:
        """Call `write(file, None)` for the raw weights, and `write(path, average)` while each EMA is in place.

        The latter write into a temporary folder, which becomes the file only when it is whole.
        """
        only = self.settings.save == "only"
        ready = ready_ones(say_so=only)
        if not (only and ready):
            with averaging.raw_for_saving():
                write(file, None)
        for average in ready:
            self._save_average(file, write, average, instead=only and average is ready[0])

    def _save_average(
        self, file: str, write: Callable[[str, Average | None], object], average: Average, *, instead: bool
    ) -> None:
        """Save one EMA, next to the raw file or `instead` of it."""
        target = file if instead else file_of_average(file, self._output_name, average.suffix)
        try:
            with unwinding_on_sigterm(), average.saving(), safe_save.moved_into_place(target) as temporary:
                write(temporary, average)
        except Exception as error:  # a full disk, mostly
            if average.swapped:
                raise
            safe_save.tell_failure(target, error, only=instead)
            if instead:
                last = is_last(file, self._output_name)
                with (
                    safe_save.kept_going(unless=last),
                    averaging.raw_for_saving(),
                    safe_save.moved_into_place(file) as temporary,
                ):
                    write(temporary, None)
            return
        average.saved(last=is_last(file, self._output_name))
        if not instead:
            self._upload(target)
            self._rotate(file, average.suffix)

    @property
    def _output_name(self) -> str | None:
        name: str | None = getattr(self.args, "output_name", None)
        return name

    def _upload(self, file: str) -> None:
        """To Hugging Face, where the script sends the raw file."""
        uploader = sys.modules.get("library.huggingface_util")
        if uploader is not None and getattr(self.args, "huggingface_repo_id", None) is not None:
            uploader.upload(self.args, file, "/" + Path(file).name)

    def _rotate(self, file: str, suffix: str) -> None:
        """The script is about to remove one older raw file, the one this save has outlived: its twin goes too."""
        outlived = outlived_by(file, self._output_name, self.args)
        if outlived is not None:
            Path(file_of_average(outlived, self._output_name, suffix)).unlink(missing_ok=True)
