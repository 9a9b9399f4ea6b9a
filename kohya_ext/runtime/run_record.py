"""The record of a run that validates, in its output folder: validations, training losses, settings."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean

from kohya_ext.files.atomic import write_atomic
from kohya_ext.runtime import loader
from kohya_ext.runtime.run import is_main_process, run, warn_again_at_end
from kohya_ext.validation import records
from kohya_ext.validation.records import Row


class RunRecord:
    """The files of one run. Losses wait in memory until a validation or a saved state."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._waiting: list[tuple[int, int, float]] = []
        self._since: list[float] = []  # the losses since the validation before
        self._files: dict[str, Path] | None = None

    def add(self, step: int, epoch: int, loss: float) -> None:
        """A batch has been trained on. step: counted from where this process began."""
        self._waiting.append((step, epoch, loss))
        self._since.append(loss)

    def flush(self, offset: int) -> None:
        """Write the losses. offset: the script's count of steps where this process began. A full disk stops nothing."""
        trained = [(step + offset, epoch, loss) for step, epoch, loss in self._waiting]
        self._waiting.clear()
        if not is_main_process():
            return
        try:
            self._open(trained[0][0] if trained else offset + 1)
            records.append(self._files[records.LOSSES], trained)  # type: ignore[index]
        except (OSError, ValueError) as error:
            warn_again_at_end(f"the losses could not be recorded ({error}); training continues")

    def mean(self) -> float:
        """Of the losses since the validation before; NaN where there are none. To be called after `flush`, once."""
        mean = fmean(self._since) if self._since else math.nan
        self._since = []
        return mean

    def validated(self, rows: list[Row]) -> None:
        """Write a validation. A full disk stops nothing."""
        if not is_main_process():
            return
        try:
            self._open(rows[0].step)
            records.append(self._files[records.VALIDATIONS], map(records.cells, rows))  # type: ignore[index]
        except (OSError, ValueError) as error:
            warn_again_at_end(f"the validation could not be recorded ({error}); training continues")

    def has_validated(self, step: int) -> bool:
        """Whether the run that is resumed has recorded a validation after this step."""
        try:
            return any(row.step == step for row in records.validations(self._path(records.VALIDATIONS)))
        except (OSError, ValueError):
            return False

    def _path(self, suffix: str) -> Path:
        return Path(self.args.output_dir, f"{getattr(self.args, 'output_name', None) or 'run'}{suffix}")

    def _open(self, first: int) -> None:
        """Begin the files; a resumed run goes on with those that are there.

        first: the first step to be recorded. Where steps go on, too, what an interrupted run has recorded from there on
        is dropped.
        """
        if self._files is not None:
            return
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        files, resumed = {}, bool(getattr(self.args, "resume", None))
        for suffix, columns in ((records.VALIDATIONS, records.COLUMNS), (records.LOSSES, records.LOSS_COLUMNS)):
            files[suffix] = self._path(suffix)
            if not (resumed and files[suffix].is_file()):
                records.write(files[suffix], columns, [])
            elif loader.RESUME in run.loader_layers:
                records.drop_from(files[suffix], columns, first)
        if resumed and loader.RESUME in run.loader_layers:
            last = max((row.step for row in records.validations(files[records.VALIDATIONS])), default=0)
            before = [loss for step, loss in records.losses(files[records.LOSSES]) if step > last]
            self._since = before + self._since
        said = records.settings_of(Path(sys.argv[0]).name, vars(self.args))
        write_atomic(self._path(records.SETTINGS), json.dumps(said, indent=1).encode())
        self._files = files
