"""A file that a script writes, and its twin from the EMA: named, uploaded and rotated along with it.

For everything that is not a full checkpoint: those go through savers of Kohya's that do all this themselves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from kohya_ext.runtime import averaging, naming, safe_save
from kohya_ext.runtime.average import Average
from kohya_ext.runtime.interruption import unwinding_on_sigterm
from kohya_ext.runtime.options import EmaOptions


class Twins:
    """Saves raw and EMA files of one run as `--ema_save` says."""

    def __init__(self, args: argparse.Namespace, settings: EmaOptions) -> None:
        self.args, self.settings = args, settings

    def save(self, file: str, write: Callable[[str, Average | None], object]) -> None:
        """Call `write(file, None)` for the raw weights, and `write(path, average)` while the EMA is in place.

        The second writes into a temporary folder, which becomes the file only when it is whole.
        """
        average = averaging.current()
        only = self.settings.save == "only"
        if average is None or not average.ready(say_so=only):
            write(file, None)
            return
        target = file
        if not only:
            write(file, None)
            target = naming.file_of_average(file, self._output_name)
        try:
            with unwinding_on_sigterm(), average.in_place(), safe_save.moved_into_place(target) as temporary:
                write(temporary, average)
        except Exception as error:  # a full disk, mostly
            if average.swapped:
                raise
            safe_save.tell_failure(target, error, only=only)
            if only:
                last = naming.is_last(file, self._output_name)
                with safe_save.kept_going(unless=last), safe_save.moved_into_place(file) as temporary:
                    write(temporary, None)
            return
        average.tell_health()
        if not only:
            self._upload(target)
            self._rotate(file)

    @property
    def _output_name(self) -> str | None:
        name: str | None = getattr(self.args, "output_name", None)
        return name

    def _upload(self, file: str) -> None:
        """To Hugging Face, where the script sends the raw file."""
        uploader = sys.modules.get("library.huggingface_util")
        if uploader is not None and getattr(self.args, "huggingface_repo_id", None) is not None:
            uploader.upload(self.args, file, "/" + Path(file).name)

    def _rotate(self, file: str) -> None:
        """The script is about to remove one older raw file, the one this save has outlived: its twin goes too."""
        outlived = naming.outlived_by(file, self._output_name, self.args)
        if outlived is not None:
            Path(naming.file_of_average(outlived, self._output_name)).unlink(missing_ok=True)
