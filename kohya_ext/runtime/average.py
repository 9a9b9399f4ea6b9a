"""The EMA of one training run: a shadow for each optimizer, updated on real steps, swapped in for saves and samples.

Updates are *deferred*. Kohya may still change weights after `optimizer.step()` (`--scale_weight_norms`, frozen
embedding rows), so a step only marks the EMA as behind; it catches up before the next step, and before any save,
sample or state. Steps that never happen (accumulation, overflow skips) fire no hook and so are not counted. In a fused
backward pass the optimizer's `step` is never called; there each parameter is averaged right after its own step.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kohya_ext import __version__
from kohya_ext.ema import Schedule, Shadow, checkpoint, describe
from kohya_ext.ema.health import rounding_noise
from kohya_ext.ema.schedules import Constant, Debiased, Exponential, Power, Warmup
from kohya_ext.runtime.block_moves import finish_moves
from kohya_ext.runtime.options import EmaOptions
from kohya_ext.runtime.run import is_main_process, say, stop, warn_again_at_end
from kohya_ext.runtime.snapshots import Snapshots
from kohya_ext.runtime.tracks import Track
from kohya_ext.runtime.zero import Zero
from kohya_ext.runtime.zero_track import ZeroTrack
from kohya_ext.spec.outputs import EMA_METADATA, ema_suffix

# A bfloat16 EMA that has more rounding than this in its distance from the weights is told to be noise.
MOST_NOISE = 0.5


class Average:
    """An EMA over all optimizers of a run. `--fused_optimizer_groups` makes one optimizer a group of weights.

    place: among the EMAs of the run, from 0. width: its relative width with the schedule power, else None. suffix: of
    its files' names. weights: what records call it. label: what messages call it. tracks: one for each optimizer.
    """

    def __init__(self, args: argparse.Namespace, options: EmaOptions, place: int = 0) -> None:
        self.args, self.options, self.place = args, options, place
        widths = options.sigma_rel or (None,)
        self.width = widths[place]
        self.suffix = ema_suffix(place)
        self.weights = self.suffix.removeprefix("-")
        self.label = "EMA" if len(widths) == 1 else f"EMA of width {self.width:g}"
        self._names: dict[int, str] = {}
        self.models: list[Any] = []
        self.tracks: list[Track] = []
        self._hooks: list[Any] = []
        self._announced = False
        self._cost_told = False
        self._noise_told = False
        self._snapshots = Snapshots(args, options, place)

    def meet(self, model: Any) -> None:
        """Learn the parameters' names of a model, for the state files: `0.` for the first model seen, and so on."""
        named_parameters = getattr(model, "named_parameters", None)
        if named_parameters is None:
            return
        for name, parameter in named_parameters():
            self._names.setdefault(id(parameter), f"{len(self.models)}.{name}")
        self.models.append(model)

    def follow(self, optimizer: Any) -> None:
        """Average the weights of `optimizer` from its first step on."""
        if callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None)):
            stop(
                f"--enable_ema does not work with {type(optimizer).__name__}: it averages the weights itself "
                "(it has train and eval modes), and the weights in training are not the ones to average; "
                "use only one of them"
            )
        track = Track(self, optimizer)
        self.tracks.append(track)
        self._hooks += [
            optimizer.register_step_pre_hook(lambda *_: track.before_step()),
            optimizer.register_step_post_hook(lambda *_: track.after_step()),
        ]

    def attach(self, zero: Zero) -> None:
        """DeepSpeed has divided the weights of the optimizer that is followed, and steps it part by part."""
        while self._hooks:
            self._hooks.pop().remove()
        self.tracks = [ZeroTrack(self, track.optimizer, zero) for track in self.tracks]
        for track in self.tracks:
            zero.follow(track)

    def before_step_of(self, parameter: Any) -> None:
        """Fused backward: `parameter` is about to be stepped by itself."""
        track = self._track_of(parameter)
        track.start()
        if self._snapshots.kept and track.made().has_stepped(parameter):  # all have: the step before is over
            track.catch_up()
            self.between_steps(track.made().step)

    def after_step_of(self, parameter: Any) -> None:
        """Fused backward: `parameter` has been stepped; blocks may move it away soon, so it is averaged at once."""
        self._track_of(parameter).after_step_of(parameter)

    def ready(self, *, say_so: bool = False) -> bool:
        """True once there is an average to save or to sample from: `--ema_start_step` may be ahead.

        say_so: tell the user when there is none, because raw weights are about to be saved in its place.
        """
        for track in self.tracks:
            track.catch_up()
        started = bool(self._started())
        if say_so and not started:
            say(f"the {self.label} has not begun yet (--ema_start_step): these are the raw weights")
        return started

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The EMA is in the model's parameters while this lasts; the raw weights come back bit for bit."""
        with self._swapped_in(lambda track: track.in_place()):
            yield

    @contextmanager
    def saving(self) -> Iterator[None]:
        """`in_place`, for the time in which a file is written."""
        with self._swapped_in(lambda track: track.for_saving()):
            yield
            if self._snapshots.kept and self.place == 0:
                self._snapshots.write_samples(self._entries(), self.metadata())

    @contextmanager
    def _swapped_in(self, exchange: Callable[[Track], AbstractContextManager[None]]) -> Iterator[None]:
        finish_moves(self.models)
        with ExitStack() as stack:
            for track in self.tracks:
                track.catch_up()
                if track.started:
                    stack.enter_context(exchange(track))
            stack.callback(finish_moves, self.models)  # sampling moves blocks; the weights come back after that
            yield

    def saved(self, *, last: bool) -> None:
        """The EMA has been saved. last: at the end of the run."""
        self.tell_health()
        if self._snapshots.due_with_save(last=last):
            self._write_snapshot()

    def between_steps(self, step: int) -> None:
        """All optimizers have done this step, and none the next: time for a snapshot, if one is due."""
        if self._snapshots.due(step) and self.ready():
            self._write_snapshot()

    def _write_snapshot(self) -> None:
        if not is_main_process():
            return
        about = self.metadata()
        self._snapshots.write(int(about[f"{EMA_METADATA}steps"]), self._entries(), about)

    def _entries(self) -> list[tuple[str, Any, Any]]:
        """(name, weights, average) of all that is averaged; of several optimizers the names tell which."""
        several = len(self.tracks) > 1
        return [
            (f"optimizer{number}.{name}" if several else name, weights, average)
            for number, track in enumerate(self.tracks)
            if track.started
            for name, weights, average in track.entries()
        ]

    @contextmanager
    def raw(self) -> Iterator[None]:
        """The raw weights are in the parameters while this lasts, also within `in_place`."""
        finish_moves(self.models)
        with ExitStack() as stack:
            for track in self.tracks:
                stack.enter_context(track.raw())
            yield

    @contextmanager
    def raw_for_saving(self) -> Iterator[None]:
        """The raw weights are in the parameters in a form that can be written to a file."""
        with ExitStack() as stack:
            for track in self.tracks:
                stack.enter_context(track.raw_for_saving())
            yield

    @property
    def swapped(self) -> bool:
        """Whether the EMA is in the parameters; after `in_place` only where the raw weights could not be put back."""
        return any(track.swapped for track in self.tracks)

    def parameters(self) -> list[Any]:
        """All that the optimizers step, in the order in which they were given."""
        return [p for track in self.tracks for group in track.optimizer.param_groups for p in group["params"]]

    def metadata(self) -> dict[str, str]:
        """What the files of the EMA say about themselves."""
        shadows = [track.shadow for track in self.tracks if track.shadow is not None]
        entries = {
            "version": __version__,
            "schedule": self.options.schedule,
            "update_every": self.options.update_every,
            "start_step": self.options.start_step,
            "steps": max((shadow.step for shadow in shadows), default=0),
            "updates": max((shadow.updates for shadow in shadows), default=0),
            "dtype": self.options.dtype,
        }
        if self.options.schedule == "power":
            entries["sigma_rel"] = self.width
        else:
            entries["decay"] = self.options.decay
        if self.options.schedule == "exp":
            entries |= {"exp_beta": self.options.exp_beta, "max_steps": max(1, int(self.args.max_train_steps))}
        return {EMA_METADATA + key: str(value) for key, value in entries.items()}

    def health(self) -> dict[str, float]:
        """What the newest update left of the EMA before it, and ||average - weights|| / ||weights||.

        Empty before the first update. Nothing is caught up with: looking changes nothing.
        """
        started = self._started()
        if not started:
            return {}
        finish_moves(self.models)
        norms = [track.norms() for track in self.tracks if track.started]
        apart, size = sum(norm[0] for norm in norms), sum(norm[1] for norm in norms)
        return {"ema_decay": started[0].decay, "ema_distance": math.sqrt(apart / size) if size else 0.0}

    def tell_health(self) -> None:
        """Say with each save how the EMA stands."""
        if is_main_process() and (health := self.health()):
            steps = self.metadata()[f"{EMA_METADATA}steps"]
            say(
                f"{self.label} saved after {steps} steps: decay {health['ema_decay']:.6g}, "
                f"||EMA - weights|| / ||weights|| = {health['ema_distance']:.3g}"
            )

        self.tell_noise()

    def tell_noise(self) -> None:
        """Say once, and again at the end, that the EMA's dtype is too coarse for this learning rate."""
        noise = 0.0 if self._noise_told or not is_main_process() else rounding_noise(*self._started())
        if noise > MOST_NOISE:
            self._noise_told = True
            warn_again_at_end(
                f"about {min(noise, 1):.0%} of the distance between the EMA and the weights is rounding: updates are "
                "too small for --ema_dtype bfloat16, and the EMA is the weights with noise. Use --ema_dtype float32 "
                "(with --ema_device cpu it takes no memory on the GPU)"
            )

    def tell_cost(self) -> None:
        """Say once what the updates take, when that is known."""
        costs = [track.stopwatch.milliseconds for track in self.tracks]
        known = [cost for cost in costs if cost is not None]
        if not self._cost_told and len(known) == len(costs):
            self._cost_told = True
            together = any(track.leads for track in self.tracks)
            say(f"{'both EMAs take' if together else f'the {self.label} takes'} {sum(known):.3g} ms a step")

    def names_of(self, parameters: Sequence[Any]) -> list[str]:
        """A name for each parameter; its place where no model with it was seen."""
        return [self._names.get(id(parameter), f"parameter.{place}") for place, parameter in enumerate(parameters)]

    def schedule(self) -> Schedule:
        """The schedule of this run. To be asked at the first step: only then is `max_train_steps` final."""
        decay = self.options.decay
        if self.options.schedule == "power":
            assert self.width is not None
            return Power(self.width)
        if self.options.schedule == "exp":
            return Exponential(decay, self.options.exp_beta, max(1, int(self.args.max_train_steps)))
        if self.options.schedule == "constant":
            return Constant(decay)
        return Warmup(decay) if self.options.schedule == "warmup" else Debiased(decay)

    def save_state(self, folder: Path) -> None:
        """Write the EMA into a state that Kohya has just saved. Raises OSError; none of it is there then."""
        if not is_main_process():
            return
        files = list(zip(self.tracks, _state_files(folder, self.place), strict=False))
        try:
            with self.raw():
                for track, file in files:
                    track.save_state(file)
        except BaseException:  # all or none: a run that resumes takes them together
            for _, file in files:
                file.unlink(missing_ok=True)
            raise

    def load_state(self, folder: Path) -> None:
        """Go on from the EMA in the folder of a state that Kohya has just loaded. Stops at another model's."""
        files = list(zip(self.tracks, _state_files(folder, self.place), strict=False))
        if not all(track.everywhere(file.is_file()) for track, file in files):
            say(f"{folder} contains no {self.label}: this run starts a new one from the resumed weights")
            self._snapshots.resume(0)
            return
        for track, file in files:
            try:
                differences = track.load_state(file)
            except ValueError as error:
                stop(f"cannot resume the EMA from {file}: {error}. Remove --enable_ema, or move that file away")
            for difference in differences:
                say(difference)
        self._snapshots.resume(max(track.made().step for track in self.tracks))

    def announce(self, shadow: Shadow) -> None:
        """Say once, at the first step, what is averaged, over how long, and where it is kept."""
        if self._announced:
            return
        self._announced = True
        options = self.options
        total = int(self.args.max_train_steps) - options.start_step
        if total < 1:
            stop(
                f"--ema_start_step {options.start_step} is after the last of {self.args.max_train_steps} steps: "
                "the EMA would never start"
            )
        decay = "" if options.schedule == "power" else f", decay {options.decay:g}"
        where = shadow.placement.reason if shadow.placement is not None else "next to the weights"
        say(
            f"{self.label} is on: schedule {options.schedule}{decay}; "
            f"it will cover {describe(shadow.schedule, total)}; {options.dtype}, kept {where}"
        )
        if self._snapshots.kept:
            say(f"{self.label}: {self._snapshots.announcement(sum(p.numel() for p in self.parameters()))}")

    def _started(self) -> list[Shadow]:
        """The shadows from which there is something to save or to sample."""
        shadows = (track.shadow for track in self.tracks)
        return [shadow for shadow in shadows if shadow is not None and shadow.started]

    def _track_of(self, parameter: Any) -> Track:
        track = next((track for track in self.tracks if track.has(parameter)), None)
        if track is None:
            stop(f"a parameter of shape {tuple(parameter.shape)} is stepped by an optimizer that the EMA does not know")
        return track


def _state_files(folder: Path, place: int) -> Iterator[Path]:
    """The file of the first optimizer's average, of the second's, and so on, for the run's EMA at this place."""
    stem = Path(checkpoint.FILE_NAME).stem + ("" if place == 0 else f"_width{place + 1}")
    yield folder / f"{stem}.safetensors"
    for number in itertools.count(2):
        yield folder / f"{stem}_{number}.safetensors"
