"""Snapshots of a run's EMAs (`--ema_snapshot_every`): when they are written, and which of them are kept.

They are in a folder next to the model, by the names of the parameters, so no saver of Kohya's is needed between two
saves. Which tensor of a saved file is which parameter is found out after the run, by samples that are taken while the
EMA is saved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from kohya_ext.ema.snapshot import Entry, check_reference, write_reference, write_samples, write_snapshot
from kohya_ext.runtime.options import EmaOptions
from kohya_ext.runtime.run import is_main_process, stop, warn_again_at_end
from kohya_ext.spec.flags import SNAPSHOT_EVERY
from kohya_ext.spec.outputs import (
    NAMELESS_LAST,
    REFERENCE_FILE,
    SAMPLES_FILE,
    SNAPSHOT,
    snapshot_file,
    snapshots_folder,
)
from kohya_ext.tensors.tensorfile import TensorFile

FULL = "float32"  # a snapshot of this dtype needs no reference weights


def folder_of(args: argparse.Namespace) -> Path:
    """Where the snapshots of a run with these arguments are."""
    return Path(args.output_dir, snapshots_folder(args.output_name or NAMELESS_LAST))


def refuse_those_of_another_run(args: argparse.Namespace, options: EmaOptions) -> None:
    """Stop a run that resumes nothing where one of its name has left snapshots: they would be mixed with its own."""
    folder = folder_of(args)
    if options.snapshot_every is not None and not getattr(args, "resume", None) and _found(folder):
        stop(
            f"{folder} contains snapshots of another run, and this one does not --resume it: move that folder away, "
            f"or choose another --output_name (or leave out {SNAPSHOT_EVERY.name})"
        )


def _found(folder: Path) -> list[tuple[int, int, Path]]:
    """(place of the EMA, step, file) of all snapshots, the earliest first."""
    matches = [(SNAPSHOT.fullmatch(path.name), path) for path in folder.glob("*")]
    return sorted((int(match["place"] or 1) - 1, int(match["step"]), path) for match, path in matches if match)


class Snapshots:
    """Those of one EMA. place: of the EMA among those of the run, from 0."""

    def __init__(self, args: argparse.Namespace, options: EmaOptions, place: int) -> None:
        self.folder, self.options, self.place = folder_of(args), options, place
        self._written = 0  # the step of the newest
        self._reference: TensorFile | None = None

    @property
    def kept(self) -> bool:
        """Whether this run writes any."""
        return self.options.snapshot_every is not None

    def due_with_save(self, *, last: bool) -> bool:
        """Whether one goes with a save of the EMA. last: at the end of the run."""
        return self.options.snapshot_every == 0 or (self.kept and last)

    def due(self, step: int) -> bool:
        """Whether one has to be written between this step and the next."""
        every = self.options.snapshot_every
        return bool(every) and step > self._written and step % (every or 1) == 0

    def announcement(self, weights: int) -> str:
        """When, where and how large, for the start of the run. weights: their number."""
        every = self.options.snapshot_every
        bytes_each = weights * (4 if self.options.snapshot_dtype == FULL else 2)
        size = f"{bytes_each / 1e9:.3g} GB" if bytes_each >= 1e9 else f"{bytes_each / 1e6:.3g} MB"
        when = f"every {every} steps" if every else "with each save"
        return f"{when} a snapshot of {size} ({self.options.snapshot_dtype}) goes to {self.folder}"

    def write(self, step: int, entries: Sequence[Entry], about: dict[str, str]) -> None:
        """Write the snapshot after this step, unless it is there. A full disk does not stop a run.

        entries: all that is averaged, raw weights in place; about: which EMA it is.
        """
        if step > self._written and is_main_process():
            self._written = step
            self._try(f"the snapshot of step {step}", lambda: self._write(step, entries, about))

    def write_samples(self, entries: Sequence[Entry], about: dict[str, str]) -> None:
        """Take the samples of what is saved just now. entries: with the EMA in the weights."""
        if is_main_process():
            self._try(SAMPLES_FILE, lambda: self._write_samples(entries, about))

    def resume(self, step: int) -> None:
        """The run goes on from this step, 0 for a new EMA; later snapshots of an interrupted run go.

        Stops the run where older snapshots are of an EMA that this run does not continue.
        """
        if not self.kept:
            return
        # a step's snapshot is written when the next begins: that of the last may not be there yet
        self._written = step if (self.folder / snapshot_file(self.place, step)).is_file() else step - 1
        mine = [(at, path) for place, at, path in _found(self.folder) if place == self.place]
        if mine and not step:
            stop(
                f"{self.folder} contains snapshots of an EMA that this run does not continue (the state it resumes has "
                "none): move that folder away"
            )
        for at, path in mine:
            if at > step and is_main_process():
                path.unlink(missing_ok=True)

    def _write(self, step: int, entries: Sequence[Entry], about: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / snapshot_file(self.place, step)
        write_snapshot(path, entries, self.options.snapshot_dtype, about, self._reference_for(entries))
        if self.options.snapshot_keep is not None:
            mine = [path for place, _, path in _found(self.folder) if place == self.place]
            for old in mine[: -self.options.snapshot_keep]:
                old.unlink(missing_ok=True)

    def _reference_for(self, entries: Sequence[Entry]) -> TensorFile | None:
        if self.options.snapshot_dtype == FULL:
            return None
        if self._reference is None:
            path = self.folder / REFERENCE_FILE
            if not path.is_file() or not _found(self.folder):
                write_reference(path, entries)
            self._reference = TensorFile(path)
            check_reference(self._reference, {name: tuple(average.shape) for name, _, average in entries})
        return self._reference

    def _write_samples(self, entries: Sequence[Entry], about: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_samples(self.folder / SAMPLES_FILE, entries, about)

    def _try(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # a full disk, mostly
            warn_again_at_end(
                f"{what} could not be written to {self.folder} ({type(error).__name__}: {error}); training continues"
            )
