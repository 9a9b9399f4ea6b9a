"""`--save_best`: a copy of the saved checkpoint whose weights have the lowest validation loss, raw or EMA.

A validation and a save belong together where they have the same weights: no optimizer step is between them. Which of
the two comes first differs: a script saves after a step before the loader goes on, and after an epoch behind it.
"""

from __future__ import annotations

import argparse
import functools
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kohya_ext.core.errors import KohyaExtError
from kohya_ext.files.atomic import replacing
from kohya_ext.runtime import averaging, safe_save
from kohya_ext.runtime.ema_outputs import file_of_average, ready_ones
from kohya_ext.runtime.run import is_main_process, say, stop, warn_again_at_end
from kohya_ext.spec.flags import SAVE_BEST, VALIDATE_EVERY
from kohya_ext.spec.outputs import BEST_METADATA, BEST_SUFFIX
from kohya_ext.tensors.header import encode, read_header
from kohya_ext.validation.records import EMA, RAW, SECOND_EMA

NAMES = {RAW: "raw weights", EMA: "EMA", SECOND_EMA: "second EMA"}
_BLOCK = 1 << 24  # bytes that are copied at once
_SAVERS = ("save_weights",)


class Best:
    """The best checkpoint of one run. steps: gives the optimizer steps made so far."""

    def __init__(self, args: argparse.Namespace, every: int, steps: Callable[[], int]) -> None:
        self.args, self.steps = args, steps
        _require_saves(args, every)
        self._measured: tuple[int, Mapping[str, float]] = (-1, {})
        self._saved: tuple[int, dict[str, Path]] = (-1, {})
        self._step = 0
        self._lowest = self._before()

    def measured(self, losses: Mapping[str, float], step: int) -> None:
        """The weights as they are have these validation losses. step: the script's count."""
        self._measured, self._step = (self.steps(), losses), step
        self._keep()

    def saved(self, file: Path, weights: str) -> None:
        """The weights as they are have just been saved."""
        if self._saved[0] != self.steps():
            self._saved = (self.steps(), {})
        self._saved[1][weights] = file
        self._keep()

    def files(self) -> dict[str, str]:
        """Kind of weights -> name of the file that has been saved of the weights as they are."""
        made_at, files = self._saved
        return {weights: file.name for weights, file in files.items()} if made_at == self.steps() else {}

    def continue_from(self, files: Mapping[str, str]) -> None:
        """The run is resumed from a state whose weights were saved to these files, as `files` told them.

        It was interrupted before it had validated them: what it validates now belongs to them.
        """
        found = {weights: Path(self.args.output_dir, Path(name).name) for weights, name in files.items()}
        self._saved = (self.steps(), {weights: file for weights, file in found.items() if file.exists()})

    def noting(self, saver: Callable[..., Any], weights: str) -> Callable[..., Any]:
        """A `saver(file, ...)`, whose files are considered."""

        @functools.wraps(saver)
        def save(file: str, *rest: Any, **named: Any) -> Any:
            result = saver(file, *rest, **named)
            self._consider(Path(file), weights)
            return result

        return save

    def watch(self, network: Any) -> None:
        """Consider what this network saves of itself, from now on: raw weights and, next to them, the EMA."""
        for name in _SAVERS:
            save = getattr(network, name, None)
            if callable(save):
                setattr(network, name, self._network_saver(save))

    def _network_saver(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(save)
        def save_and_consider(file: Any, *rest: Any, **named: Any) -> Any:
            result = save(file, *rest, **named)
            ready = ready_ones()
            only = bool(ready) and ready[0].options.save == "only"
            self._consider(Path(file), EMA if only else RAW)
            for average in ready[1:] if only else ready:
                twin = Path(file_of_average(str(file), getattr(self.args, "output_name", None), average.suffix))
                if twin.is_file():
                    self._consider(twin, average.weights)
            return result

        return save_and_consider

    def _consider(self, file: Path, weights: str) -> None:
        """No fault of ours ends a run at a save."""
        try:
            self.saved(file, weights)
        except Exception as error:
            warn_again_at_end(f"the best checkpoint could not be chosen ({type(error).__name__}: {error})")

    def _keep(self) -> None:
        """Copy what is best, once both its loss and its file are there."""
        losses, files = self._measured[1], self._saved[1]
        average = averaging.current()
        unsaved = RAW if average is not None and average.options.save == "only" and EMA in losses else None
        finite = [weights for weights in losses if weights != unsaved and math.isfinite(losses[weights])]
        if self._measured[0] != self._saved[0] or not finite or not is_main_process():
            return
        best = min(finite, key=lambda weights: losses[weights])
        if best not in files or losses[best] >= self._lowest:
            return
        about = {"loss": repr(losses[best]), "step": str(self._step), "weights": best, "file": files[best].name}
        try:
            target = self._copy(files[best], {BEST_METADATA + key: value for key, value in about.items()})
        except (OSError, ValueError, KohyaExtError) as error:  # a full disk, mostly
            warn_again_at_end(f"{files[best]} is the best checkpoint so far, and could not be copied ({error})")
            return
        self._lowest = losses[best]
        say(
            f"the best so far: the {NAMES.get(best, best)} after step {self._step}, validation loss "
            f"{losses[best]:.5g}; {files[best].name} is copied to {target}"
        )

    def _copy(self, file: Path, about: Mapping[str, str]) -> Path:
        """Whole or not at all; a safetensors file also says in its metadata what it is."""
        target = self._target(file)
        if file.is_dir():
            with safe_save.moved_into_place(str(target)) as temporary:
                shutil.copytree(file, temporary)
        elif file.suffix == ".safetensors":
            header = read_header(file)
            with file.open("rb") as source, replacing(target) as copy:
                source.seek(header.start)
                copy.write(encode(header.entries, {**header.metadata, **about}))
                shutil.copyfileobj(source, copy, _BLOCK)
        else:
            with safe_save.moved_into_place(str(target)) as temporary:
                shutil.copyfile(file, temporary)
        return target

    def _target(self, file: Path) -> Path:
        suffix = "" if file.is_dir() else file.suffix
        return file.with_name(f"{getattr(self.args, 'output_name', None) or 'run'}{BEST_SUFFIX}{suffix}")

    def _before(self) -> float:
        """The loss of the best checkpoint that a resumed run has left; infinite where there is none."""
        if not getattr(self.args, "resume", None):
            return math.inf
        try:
            file = self._target(Path(self.args.output_dir, "run.safetensors"))
            return float(read_header(file).metadata[f"{BEST_METADATA}loss"])
        except (OSError, ValueError, KeyError, KohyaExtError):
            return math.inf


def _require_saves(args: argparse.Namespace, every: int) -> None:
    """Stop the run where no checkpoint would be validated but the last."""
    epochs, steps = getattr(args, "save_every_n_epochs", None), getattr(args, "save_every_n_steps", None)
    if not epochs and not steps:
        stop(f"{SAVE_BEST.name} chooses among the checkpoints of a run: add --save_every_n_epochs 1")
    if steps and (not every or steps % every):
        stop(
            f"{SAVE_BEST.name} needs a validation of each checkpoint: with --save_every_n_steps {steps}, add "
            f"{VALIDATE_EVERY.name} {steps}"
        )
