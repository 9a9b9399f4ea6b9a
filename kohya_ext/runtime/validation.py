"""`--kohya_ext_validate`: the script's own loss on held-out images, while the training stands still.

The loader hands the script held-out batches between two of its own. See `standstill` for what becomes of those.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any

from kohya_ext.runtime import averaging, heldout, loader, randomness
from kohya_ext.runtime.best import Best
from kohya_ext.runtime.ema_outputs import ready_ones
from kohya_ext.runtime.run import run, say, stop, warn_again_at_end
from kohya_ext.runtime.run_record import RunRecord
from kohya_ext.runtime.standstill import Standstill, replace_recorder
from kohya_ext.runtime.validation_options import ValidationOptions
from kohya_ext.spec.hooks import CURRENT_STEP, LOSS_RECORDER
from kohya_ext.validation import estimates
from kohya_ext.validation.measurements import Measurement, measurements
from kohya_ext.validation.records import RAW, Row

PREFIX = "kohya_ext/validation/"
_NEVER = -1


class Total(int):
    """Kohya's `max_train_steps`: its loops end where `global_step >= args.max_train_steps`.

    So at the last step it is asked, with the script's count of steps, and the last validation comes before that end.
    """

    validation: Validation

    def __le__(self, steps: object) -> bool:  # what `steps >= self` asks first
        self.validation.count(int(steps))  # type: ignore[call-overload]
        return int(self) <= int(steps) and not self.validation.owed  # type: ignore[call-overload]

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


class Validation:
    """The validations of one run.

    step: the script's count of optimizer steps. epoch: the one in progress, from 1.
    """

    def __init__(self, args: argparse.Namespace, options: ValidationOptions, accelerator: Any) -> None:
        self.args, self.options = args, options
        self.held_out = heldout.require()
        self.standstill = Standstill(accelerator, self._prepared)
        self.measurements = measurements(self.held_out.names, options.timesteps, options.seed)
        self.best = Best(args, options.every, lambda: self.standstill.steps) if options.save_best else None
        self.step, self.epoch = 0, 0
        self._measured_at: int | None = None
        self._extra = 0  # held-out batches that the script has counted in this pass
        self._offset: int | None = None  # the script's count of steps where this process began, once it is known
        self.record = RunRecord(args)
        self._lowest: dict[str, list[float]] = {}
        self._told_draws = False
        self._after_epoch = False  # whether this run was resumed from a state between two epochs
        self._begun = time.perf_counter()
        if not replace_recorder(sys.modules, LOSS_RECORDER, self._recording):
            stop(
                "validation needs sd-scripts 0.7.1 or newer (kohya_ss v22.2.0): this release keeps its running loss "
                "within the script; remove --kohya_ext_validate or --kohya_ext_validation_split"
            )

        accelerator.save_state = self._recorded_first(accelerator.save_state)

    def count(self, steps: int) -> None:
        """The script says how many optimizer steps it has counted."""
        self.step, self._offset = steps, steps - self.standstill.steps

    def _recorded_first(self, save_state: Callable[..., Any]) -> Callable[..., Any]:
        """`save_state`, after the losses so far: a run that is resumed from that state has them all."""

        @functools.wraps(save_state)
        def record_and_save(*args: Any, **named: Any) -> Any:
            if self._offset is not None:
                self.record.flush(self._offset)
            return save_state(*args, **named)

        return record_and_save

    def _prepared(self, model: Any) -> None:
        if self.best is not None:
            self.best.watch(model)

    @property
    def owed(self) -> bool:
        """Whether the weights as they are have yet to be validated."""
        return self._measured_at != self.standstill.steps

    def around(self, batches: Iterator[Any], taken: loader.Pass) -> Iterator[Any]:
        """The layer of validation: the script's batches, with held-out ones in between."""
        if not isinstance(self.args.max_train_steps, Total):
            self._begun = time.perf_counter()
            self.args.max_train_steps = Total(self.args.max_train_steps)
            self.args.max_train_steps.validation = self
        self._extra = 0
        if self._measured_at is None and getattr(self.args, "resume", None):
            self._measured_at = _NEVER if self._was_missed() else self.standstill.steps  # by the run before
        missed = self._measured_at == _NEVER
        ended = run.resume is not None and run.resume.nothing_left
        if self._measured_at is None or (missed and (ended or (self._after_epoch and self._each_epoch))):
            yield from self._validate_first(taken)
        self.epoch += 1
        if missed and self.owed and self.options.every and self.step % self.options.every == 0:
            yield from self._validate_first(taken)
        for batch in batches:
            before = self.standstill.steps
            yield batch
            if self.standstill.steps != before and self._due():
                yield from self._validate(taken)
            if self._ended():
                return
        if self.owed and self._each_epoch:
            yield from self._validate(taken)

    def _validate_first(self, taken: loader.Pass) -> Iterator[Any]:
        """Validate the weights that the process began with. Where a signal cuts it off, leave them to the next process.

        If this one trained on to a step that it can save, they would never be validated.
        """
        yield from self._validate(taken)
        resume, cut_off = run.resume, self.owed and self._asked_to_stop
        if cut_off and not self.standstill.steps and resume is not None and not resume.nothing_left:
            resume.leave_untrained()

    @property
    def _each_epoch(self) -> bool:
        return not self.options.every or self.best is not None

    @property
    def _asked_to_stop(self) -> bool:
        """Whether a signal waits for the state to be saved: rented machines give seconds for that."""
        return run.resume is not None and bool(run.resume.asked_to_stop)

    def continue_from(self, step: int, epoch: int, checkpoints: Mapping[str, str], *, within: bool) -> None:
        """The run is resumed exactly, after `step` steps: within the epoch with this index, or after it.

        checkpoints: the files that were saved after that step, as `Best.files` told them.
        """
        self.step, self.epoch, self._after_epoch = step, epoch if within else epoch + 1, not within
        if self.best is not None:
            self.best.continue_from(checkpoints)

    def _was_missed(self) -> bool:
        """Whether a run that is resumed exactly was stopped after it saved the state, but before it had validated."""
        return run.resume is not None and not self.record.has_validated(self.step)

    def _ended(self) -> bool:
        return self.step >= int(self.args.max_train_steps) and self.standstill.steps > 0

    def _due(self) -> bool:
        every = self.options.every
        return self._ended() or bool(every and self.step % every == 0)

    def _validate(self, taken: loader.Pass) -> Iterator[Any]:
        """Measure raw weights and EMA, and report. Random numbers go on as if nothing had been."""
        begun, states = time.perf_counter(), randomness.kept()
        counter = getattr(getattr(taken.loader, "collate_fn", None), CURRENT_STEP, None)
        found: dict[str, list[float]] = {}
        whole = True
        try:
            for weights, swapped in self._kinds():
                losses: list[float] = []
                with swapped(), self.standstill.still(counter):
                    yield from self._measure(taken, losses)
                whole = whole and len(losses) == len(self.measurements)
                if not whole:
                    break
                found[weights] = estimates.by_image(losses, self.options.timesteps)
        finally:
            randomness.put_back(states)
        if not whole:
            return
        self._measured_at = self.standstill.steps
        self._report(found, time.perf_counter() - begun)

    def _kinds(self) -> Iterator[tuple[str, Callable[[], AbstractContextManager[Any]]]]:
        yield RAW, nullcontext
        for average in ready_ones():
            yield average.weights, average.in_place

    def _measure(self, taken: loader.Pass, losses: list[float]) -> Iterator[Any]:
        from accelerate.utils import send_to_device

        device = getattr(taken.loader, "device", None)
        for measurement in self.measurements:
            if self._asked_to_stop:
                say(f"the validation after step {self.step} is skipped: a signal has asked for a state")
                return
            randomness.seed_all(measurement.seed)
            try:
                batch = self.held_out.batch(measurement.number)
            except Exception as error:
                self._unreadable(self.held_out.names[measurement.number], error)
                return
            if device is not None:
                batch = send_to_device(batch, device)
            self.standstill.quantile = measurement.quantile
            randomness.seed_all(measurement.seed)
            yield batch
            self._extra += 1
            losses.append(self.standstill.take_loss())
        self._tell_draws(self.measurements[-1])

    def _unreadable(self, name: str, error: Exception) -> None:
        """Stop a run that has not begun yet; one that has trained goes on."""
        why = f"the held-out image {name} cannot be read ({type(error).__name__}: {error})"
        if self._measured_at is None and not self.standstill.steps:
            stop(f"{why}: repair it, or remove it from the held-out images")
        warn_again_at_end(f"the validation after step {self.step} is skipped: {why}")

    def _tell_draws(self, last: Measurement) -> None:
        if not self._told_draws and self.standstill.drawn != 1:
            say(
                f"validation: this script draws its timesteps in an unknown way ({self.standstill.drawn} draws); they "
                "are the same at each validation, but may not be spread evenly"
            )
        self._told_draws = True

    def _recording(self, add: Callable[..., Any]) -> Callable[..., Any]:
        """`LossRecorder.add`, which sees the script's own batches only, under their own numbers."""

        def add_own(recorder: Any, *args: Any, **named: Any) -> Any:
            if self.standstill.measuring:
                return None
            if "step" in named:
                named["step"] -= self._extra
            if "epoch" in named:
                self.epoch = int(named["epoch"]) + 1
            if "loss" in named:
                self.record.add(self.standstill.step_of_loss, self.epoch, float(named["loss"]))
            return add(recorder, *args, **named)

        return add_own

    def _report(self, found: dict[str, list[float]], seconds: float) -> None:
        made = {weights: estimates.estimate(losses) for weights, losses in found.items()}
        self.record.flush(self.step - self.standstill.steps)
        mean = self.record.mean()
        rows = [self._row(weights, one, mean, seconds) for weights, one in made.items()]
        self._say(found, made, seconds)
        if self.best is not None:
            self.best.measured({row.weights: row.loss for row in rows}, self.step)
        self.record.validated(rows)
        self.standstill.log({PREFIX + row.weights: row.loss for row in rows}, step=self.step)

    def _row(self, weights: str, made: estimates.Estimate, trained: float, seconds: float) -> Row:
        margin = math.nan if made.margin is None else made.margin
        return Row(
            step=self.step, epoch=self.epoch, weights=weights,
            loss=made.mean, low=made.mean - margin, high=made.mean + margin,
            train_loss=trained,
            images=len(self.held_out.names), timesteps=self.options.timesteps,
            seconds=seconds, elapsed=time.perf_counter() - self._begun, peak_bytes=_peak_bytes(),
        )  # fmt: skip

    def _say(self, found: dict[str, list[float]], made: dict[str, estimates.Estimate], seconds: float) -> None:
        words = []
        names = {RAW: "raw", **{average.weights: average.label for average in averaging.kept()}}
        for weights, losses in found.items():
            text = f"{names[weights]} {made[weights]}"
            lowest = self._lowest.get(weights)
            if lowest is not None:
                change = estimates.difference(losses, lowest)
                margin = "" if change.margin is None else f" ± {change.margin:.2g}"
                text += f" (to the lowest so far {change.mean:+.2g}{margin})"
            if lowest is None or fmean(losses) < fmean(lowest):
                self._lowest[weights] = losses
            words.append(text)
        interval = (
            "± is a 95 % interval over the images; " if any(one.margin is not None for one in made.values()) else ""
        )
        count = f"{len(self.held_out.names)} images x {self.options.timesteps} timesteps"
        say(
            f"validation after step {self.step} (epoch {self.epoch}): {', '.join(words)}; "
            f"{interval}{count}, {seconds:.1f} s"
        )


def begin(args: argparse.Namespace, options: ValidationOptions, accelerator: Any) -> None:
    """A run starts that validates."""
    validation = Validation(args, options, accelerator)
    heldout.mirror(type(validation.held_out.group), options.seed)
    loader.insert(loader.VALIDATION, validation.around)
    run.validation = validation


def _peak_bytes() -> int:
    """The most memory used so far: of the GPU as torch counts it, else of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
