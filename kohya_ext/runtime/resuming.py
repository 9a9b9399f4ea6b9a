"""`--kohya_ext_exact_resume`: a resumed run does what the uninterrupted one would have done, from the next batch on.

It counts the batches of each epoch in a layer of the training's loader (`loader.py`) and keeps the states of the random
number generators: at the start of the epoch, before the loader last read ahead, and at a save. A state holds these in a
record (`kohya_ext/resume/record.py`). After a resume the script's loops are entered at the epoch and the batch of the
state (`training_script.py`), the loader reads what has been seen again and discards it (`replay.py`), and all
generators continue from where they were.
"""

from __future__ import annotations

import argparse
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from kohya_ext.core.about import VERSION
from kohya_ext.core.errors import STOPPED_BY_SIGNAL
from kohya_ext.resume.record import Position, Record, RunStart
from kohya_ext.runtime import losses, replay, rng, telemetry
from kohya_ext.runtime.interruption import Interruption
from kohya_ext.runtime.loader import Pass
from kohya_ext.runtime.run import run, say, stop
from kohya_ext.runtime.training_script import TrainingScript
from kohya_ext.spec.flags import EXACT_RESUME
from kohya_ext.spec.outputs import NAMELESS_STEP, STEP_STATE

_END = object()


@dataclass
class _Epoch:
    """The epoch that is under way, or the last one.

    number: from 0. first_step: optimizer steps before it. start, ahead: the generators at its start, and before the
    loader read its latest batch (it is one batch ahead of the script). batches: how many the script has got. over: the
    script has left the epoch's loop.
    """

    number: int
    first_step: int
    start: rng.States
    ahead: rng.States
    batches: int = 0
    over: bool = False


class ExactResume:
    """One run that can be resumed exactly, and may have been."""

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Any,
        script: TrainingScript,
        launch: RunStart,
        settings: dict[str, Any],
        interruption: Interruption | None,
    ) -> None:
        self.args, self.script = args, script
        # not kept alive: some scripts delete it for the memory before they save their model at the end
        self.accelerator: Any = weakref.proxy(accelerator)
        self.launch, self.settings, self.interruption = launch, settings, interruption
        self.id = uuid.uuid4().hex
        self.origin: Record | None = None
        self.nothing_left = False
        self._resumes = False
        self._last: Position | None = None  # of a run that has nothing left, whose loop is entered without a batch
        self._epoch: _Epoch | None = None
        self._starts: list[str] = []
        self._images: str | None = None
        self._stopping = False
        self._saved: rng.States | None = None
        self._leave_loops: Callable[[], None] = lambda: None

    # ------------------------------------------------------------------ states

    def record(self) -> Record:
        """What a state that is saved now has to say about itself. Raises RuntimeError before the first batch."""
        epoch = self._epoch
        if epoch is None:
            raise RuntimeError("no batch has been trained on yet")
        values = self.script.values("global_step", "train_dataloader", "current_step")
        loader, told = values["train_dataloader"], values.get("current_step")
        position = Position(
            epoch=epoch.number,
            batches=epoch.batches,
            over=epoch.over,
            step=values["global_step"],
            total=self._total,
            first_step=epoch.first_step,
            micro_step=int(getattr(self.accelerator, "step", 0)),
            passes=int(getattr(loader, "iteration", 0)),
            caption_step=replay.caption_step(loader),
            script_step=int(told.value) if told is not None else 0,
        )
        self._saved = rng.of_all()
        random = {"now": self._saved, "start": epoch.start, "ahead": epoch.ahead}
        within = not epoch.over and not self._stopping
        return Record(
            run=self.id,
            saved_at=time.time(),
            version=VERSION,
            position=position if self._last is None else replace(self._last, total=self._total),
            launch=self.launch,
            data=self._data(loader),
            settings=self.settings,
            random={**{when: rng.to_json(states) for when, states in random.items()}, "starts": self._starts},
            losses=losses.read(self.script, batch=epoch.batches - 1, within=within),
            checkpoints=self._checkpoints(),
        )

    @staticmethod
    def _checkpoints() -> dict[str, str]:
        best = run.validation.best if run.validation is not None else None
        return {} if best is None else dict(best.files())

    def _data(self, loader: Any) -> dict[str, Any]:
        """What has to be the same for the batches to be."""
        if self._images is None:
            self._images = replay.fingerprint(loader.dataset)
        return {
            "seed": self.args.seed,
            "batches per epoch": len(loader),
            "workers": replay.workers(loader),
            "persistent workers": replay.persistent(loader),
            "accumulation": int(self.args.gradient_accumulation_steps),
            "images": self._images,
        }

    def continue_from(self, origin: Record) -> None:
        """A state has been loaded; the script has yet to come to its loops."""
        self.origin, self.id, self._resumes = origin, origin.run, True
        self._starts = list(origin.random.get("starts", []))
        if self.script.has("steps_from_state"):  # newer LoRA scripts would count from there, at the wrong batch
            self.script.put(steps_from_state=None)
        self._leave_loops = self.script.enter_loops(self._first_epoch, self._first_batch, self._entered)

    def stands_still(self) -> bool:
        """Whether nothing new happens: the resumed place is not reached yet, or no step is left."""
        return self.origin is not None or self.nothing_left

    # ------------------------------------------------------------------ the script's loops

    def _within(self, origin: Record, length: int) -> bool:
        """Whether batches of the state's epoch are still to come: also where a total that was raised since cut it."""
        place = origin.position
        return not place.over or (place.batches < length and place.step < self._total)

    def _first_epoch(self, epochs: range) -> int:
        if self.origin is None:
            return epochs.start
        length = len(self.script.values("train_dataloader")["train_dataloader"])
        place = self.origin.position
        first = place.epoch if self._within(self.origin, length) else place.epoch + 1
        if first < epochs.stop:
            return first
        self.nothing_left = True  # what comes after the loops needs their variables: the last epoch, without batches
        return epochs.stop - 1

    def _first_batch(self, things: Any) -> int:
        values = self.script.values("train_dataloader")
        if self.origin is None or self.nothing_left or things is not values["train_dataloader"]:
            return 0
        return self.origin.position.batches if self._within(self.origin, len(things)) else 0

    def _entered(self, things: Any) -> None:
        """Its batches have been asked for, and so the layer should have begun."""
        if self.origin is not None and things is self.script.values("train_dataloader")["train_dataloader"]:
            stop(f"{EXACT_RESUME.name} does not know this loader of batches ({type(things).__name__}): remove the flag")

    def layer(self, batches: Iterator[Any], taken: Pass) -> Iterator[Any]:
        """The batches of a loader; of those of the training, what is left of them."""
        if taken.script is not self.script.frame:
            return batches
        values = self.script.values("train_dataloader", "epoch")
        trained = "epoch" in values and taken.loader is values["train_dataloader"]  # not before the loop over epochs
        return self._left(batches, taken.loader) if trained else batches

    def _left(self, batches: Iterator[Any], loader: Any) -> Iterator[Any]:
        """Begin an epoch, or continue one, at once: what is around this layer may use the loader before its batches."""
        self._forget_what_followed_a_save()
        self._stop_if_asked()
        self._listen(loader)
        self._epoch = self._resumed(batches, loader) if self.origin is not None else self._begun()
        return self._counted(batches, self._epoch)

    def _counted(self, batches: Iterator[Any], epoch: _Epoch) -> Iterator[Any]:
        try:
            if self.nothing_left or self.script.values("global_step")["global_step"] >= self._total:
                return
            while True:
                self._forget_what_followed_a_save()
                epoch.ahead = rng.of_data()
                batch = self._next(batches, first=epoch.batches == 0)
                if batch is _END:
                    return
                epoch.batches += 1
                yield batch
                self._stop_if_asked()
        finally:
            epoch.over = True

    @property
    def _total(self) -> int:
        """The optimizer steps of the whole training."""
        return int(self.args.max_train_steps)

    def _forget_what_followed_a_save(self) -> None:
        """What drew random numbers after a state was saved, such as a sample, does not happen again after a resume."""
        if self._saved is not None:
            rng.put_back(self._saved)
            self._saved = None

    def _begun(self) -> _Epoch:
        values = self.script.values("epoch", "global_step", "train_dataloader")
        start = rng.of_data()
        if replay.persistent(values["train_dataloader"]):
            self._starts.append(rng.torch_packed(start))
        return _Epoch(values["epoch"], values["global_step"], start, start)

    def _next(self, batches: Iterator[Any], *, first: bool) -> Any:
        """The next batch, or _END. Workers start with the first one of an epoch."""
        with self._sparing_workers() if first else nullcontext():
            return next(batches, _END)

    def _sparing_workers(self) -> AbstractContextManager[None]:
        return nullcontext() if self.interruption is None else self.interruption.sparing_workers()

    # ------------------------------------------------------------------ after a resume

    def _resumed(self, batches: Iterator[Any], loader: Any) -> _Epoch:
        """Bring everything to where it was when the state was saved."""
        origin, self.origin = self.origin, None
        assert origin is not None
        self._leave_loops()
        self._require_same_data(origin, loader)
        place = origin.position
        within = self._within(origin, len(loader)) and not self.nothing_left
        self._require_epoch(place.epoch if within else place.epoch + 1)
        self._restore_counters(origin, within)
        states = {when: rng.from_json(origin.random[when]) for when in ("now", "start", "ahead")}
        if self.nothing_left:
            say(f"all {place.step} steps of this run have been made: nothing is left to train, only to save")
            self._last = place
            rng.put_back(states["now"])
            return _Epoch(place.epoch, place.first_step, states["start"], states["ahead"], place.batches)
        self._tell(origin, within)
        self._restore_data(origin, loader, within)
        if hasattr(loader, "iteration"):
            loader.iteration = place.passes
        if within:
            epoch = _Epoch(place.epoch, place.first_step, states["start"], states["ahead"])
            self._read_again(batches, epoch, place)
        rng.put_back(states["now"])
        return epoch if within else self._begun()

    def _require_same_data(self, origin: Record, loader: Any) -> None:
        now = self._data(loader)
        wrong = [
            f"{key}: {origin.data.get(key)}, now {value}" for key, value in now.items() if origin.data.get(key) != value
        ]
        if wrong:
            stop(
                f"this state cannot be resumed exactly, its batches would be others ({'; '.join(wrong)}): give the "
                f"same images and settings, or resume without {EXACT_RESUME.name}"
            )

    def _require_epoch(self, expected: int) -> None:
        epoch = self.script.values("epoch")["epoch"]
        if not self.nothing_left and epoch != expected:
            stop(f"{EXACT_RESUME.name}: the script is in epoch {epoch + 1}, the state continues in {expected + 1}")

    def _restore_counters(self, origin: Record, within: bool) -> None:
        place = origin.position
        self.script.put(global_step=place.step)
        losses.give_back(self.script, origin.losses, within=within)
        self.accelerator.step = place.micro_step
        told = self.script.values("current_step", "progress_bar")
        if "current_step" in told:
            told["current_step"].value = place.script_step
        bar = told.get("progress_bar")
        if bar is not None and not getattr(bar, "disable", False):
            bar.n = bar.initial = bar.last_print_n = place.step
            bar.refresh()
        telemetry.continue_from(place.step)
        if run.validation is not None:
            run.validation.continue_from(place.step, place.epoch, origin.checkpoints, within=within)

    def _tell(self, origin: Record, within: bool) -> None:
        place, total = origin.position, self._total
        where = f"epoch {place.epoch + 1} after batch {place.batches}" if within else f"epoch {place.epoch + 2}"
        say(
            f"resumed exactly at step {place.step} in {where}: --max_train_steps is the total, {total - place.step} of "
            f"{total} steps are left"
        )
        if total != place.total:
            say(f"the total was {place.total} steps when the state was saved: learning rates that depend on it differ")

    def _restore_data(self, origin: Record, loader: Any, within: bool) -> None:
        """The data set, and workers that remember earlier epochs, as at the start of the epoch to continue."""
        place = origin.position
        epochs = place.epoch if within else place.epoch + 1
        if replay.persistent(loader):
            epoch = self.script.values("current_epoch").get("current_epoch")
            if epoch is None or len(self._starts) < epochs:
                stop(f"{EXACT_RESUME.name} does not know how the persistent workers of this script began their epochs")
            say(f"the persistent workers read the batches of {epochs} epochs again")
            replay.live_through(loader, self._starts[:epochs], epoch, self._sparing_workers)
            return
        replay.tell_epochs(loader, epochs)
        found = replay.data_set(loader)
        if found is not None and not within:
            found.set_current_step(place.caption_step)

    def _read_again(self, batches: Iterator[Any], epoch: _Epoch, place: Position) -> None:
        """Read the batches that have been trained on, with the random numbers with which they were read."""
        if place.batches > 100:
            say(f"{place.batches} batches of this epoch are read again, without training")
        told = self.script.values("current_step").get("current_step")
        ahead, every = epoch.ahead, int(self.args.gradient_accumulation_steps)
        rng.put_back(epoch.start)
        for number in range(place.batches):
            if told is not None:  # what the script had set when the loader read ahead, for token warmup
                told.value = max(0, epoch.first_step + (number - 1) // every)
            if number == place.batches - 1:
                rng.put_back(ahead)
            if self._next(batches, first=number == 0) is _END:
                stop(f"the data ended after {number} batches, the state was saved after {place.batches}")
        epoch.batches = place.batches
        if told is not None:
            told.value = place.script_step

    # ------------------------------------------------------------------ signals

    def _listen(self, loader: Any) -> None:
        if replay.workers(loader) and replay.counts_tags_by_step(loader.dataset):
            stop(
                f"{EXACT_RESUME.name} does not work with --token_warmup_step and workers, whose captions depend on how "
                "far each has read ahead: use --max_data_loader_n_workers 0 or no token warmup"
            )
        if self.interruption is not None:
            self.interruption.listen()

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal has asked for a state."""
        return self.interruption is not None and self.interruption.asked_by is not None

    def leave_untrained(self) -> None:
        """End the process on a signal that came before any step: what it was resumed from is still the last state."""
        if self.interruption is None:
            return
        if not self._resumes:
            self.interruption.end_as_ever()
        say(f"stopped by a signal before another step: the state to continue from is still {self.args.resume}")
        self._end()

    def _end(self) -> NoReturn:
        self.accelerator.end_training()
        raise SystemExit(STOPPED_BY_SIGNAL)

    def _stop_if_asked(self) -> None:
        """Save a state and end the process, if a signal has asked for it and the last batch has made a step."""
        if not self.asked_to_stop or self._epoch is None:
            return
        if not self.accelerator.sync_gradients:
            return
        step = self.script.values("global_step")["global_step"]
        folder = Path(self.args.output_dir) / STEP_STATE.format(self.args.output_name or NAMELESS_STEP, step)
        self._stopping = True
        self.accelerator.save_state(str(folder))
        say(
            f"stopped by a signal at step {step}, the state is {folder}; `kohya-ext resume` has the command to continue"
        )
        self._end()
