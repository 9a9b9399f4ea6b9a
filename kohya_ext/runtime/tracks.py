"""One optimizer of a run and the EMA of its weights: updated on real steps, swapped in, and written into states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from kohya_ext.ema import Schedule, Shadow, checkpoint
from kohya_ext.ema.health import FrozenCheck, FrozenShadowError, RoundingForecast, squared_norms
from kohya_ext.runtime.block_moves import finish_moves
from kohya_ext.runtime.options import EmaOptions
from kohya_ext.runtime.run import say, stop
from kohya_ext.runtime.stopwatch import Stopwatch

# Updates in which a shadow has to move if the weights do. Tiny learning rates need some to move a float32 at all.
UPDATES_TO_MOVE = 100
# Steps that tell whether a bfloat16 EMA will be anything but rounding.
STEPS_TO_FORECAST = 100


class TrackOwner(Protocol):
    """What a track needs of the EMA that it belongs to."""

    label: str
    place: int
    models: list[Any]
    options: EmaOptions
    args: Any

    def announce(self, shadow: Shadow) -> None:
        """Say once what is averaged."""

    def between_steps(self, step: int) -> None:
        """All optimizers have done this step, and none the next."""

    def tell_cost(self) -> None:
        """Say once what the updates take."""

    def names_of(self, parameters: Sequence[Any]) -> list[str]:
        """A name for each parameter."""

    def schedule(self) -> Schedule:
        """The schedule of this run."""


class Track:
    """One optimizer and the shadow of its weights; the shadow is made at the first step, when the weights lie still.

    together: the tracks of all the run's EMAs of this optimizer: they catch up in one pass over the weights.
    """

    def __init__(self, average: TrackOwner, optimizer: Any) -> None:
        self.average = average
        self.optimizer = optimizer
        self.shadow: Shadow | None = None
        self.together: Sequence[Track] = (self,)
        self.leads = False  # its stopwatch has measured the updates of other EMAs too
        self._behind = False
        self._fused = False  # weights are averaged one by one, in a fused backward pass
        self._waited = False  # for the optimizer's state, before the EMA was placed
        self._check: FrozenCheck | None = None
        self._forecast: RoundingForecast | None = None
        self.stopwatch = Stopwatch()
        self._parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}

    def has(self, parameter: Any) -> bool:
        """Whether this optimizer steps the parameter."""
        return id(parameter) in self._parameters

    def start(self) -> None:
        """Take the start model, if this is the first step."""
        shadow = self.made()
        shadow.capture()
        self._waited = self._waited or not (shadow.placement is None or shadow.placement.final)
        self.average.announce(shadow)

    def before_step(self) -> None:
        """The optimizer is about to make a step."""
        self.catch_up()
        if self.shadow is not None:
            self.average.between_steps(self.shadow.step)
        self.start()

    def after_step(self) -> None:
        """The optimizer has made a step."""
        self._behind = True

    def after_step_of(self, parameter: Any) -> None:
        """Fused backward: one parameter has been stepped."""
        self._fused = True
        with self.stopwatch.around(self.made()):
            self.made().update_param(parameter)
        self.average.tell_cost()
        self._behind = True  # the step is closed by the next catch_up, or by this parameter's next turn

    def catch_up(self) -> None:
        """Average the newest step, if that has not been done."""
        if self._behind:
            others = [] if self._fused else [one for one in self.together if one is not self and one._behind]
            self.leads = self.leads or bool(others)
            for track in (self, *others):
                track._behind = False
            finish_moves(self.average.models)
            with self.stopwatch.around(self.made()):
                self.made().update(*(track.made() for track in others))
            for track in (self, *others):
                track._after_update()

    def _after_update(self) -> None:
        self.average.tell_cost()
        self._tell_place()
        self._stop_if_it_stands_still()
        self._stop_if_it_will_be_noise()

    def _tell_place(self) -> None:
        """Say where an EMA is kept that waited for the optimizer's state, once that is decided."""
        placement = self.made().placement
        if self._waited and placement is not None and placement.final:
            self._waited = False
            say(f"{self.average.label} is kept {placement.reason}")

    def _stop_if_it_stands_still(self) -> None:
        if self._check is None:
            self._check = FrozenCheck(self.made(), after=UPDATES_TO_MOVE)
        try:
            self._check.check()
        except FrozenShadowError as error:
            stop(f"{error}. An EMA that does not move is useless; please report this with the settings of the run")

    def _stop_if_it_will_be_noise(self) -> None:
        """A bfloat16 EMA whose error exceeds its distance from the weights is worse than the raw weights."""
        if self._forecast is None:
            shadow, total = self.made(), int(self.average.args.max_train_steps) - self.average.options.start_step
            horizon = min(total, shadow.schedule.horizon(max(1, total)))
            self._forecast = RoundingForecast(shadow, horizon, STEPS_TO_FORECAST)
        rate = _share_of_highest_rate(self.optimizer.param_groups)
        error = None if rate is None else self._forecast.after_step(rate)
        if error is not None and error >= 1:
            stop(
                f"--ema_dtype bfloat16 is too coarse for this run: by how far the weights move, rounding would put the "
                f"EMA {error:.1f} times as far from where it belongs as the raw weights are. Use --ema_dtype float32 "
                "(with --ema_device cpu it takes no memory on the GPU)"
            )

    # ------------------------------------------------------------------ saving, sampling, states

    @property
    def started(self) -> bool:
        """Whether there is something to save or to sample from."""
        return self.shadow is not None and self.shadow.started

    @property
    def swapped(self) -> bool:
        """Whether the EMA is in the parameters."""
        return self.shadow is not None and self.shadow.swapped

    def in_place(self) -> AbstractContextManager[None]:
        """The EMA is in the parameters while a model computes with them."""
        return self.made().swap()

    def for_saving(self) -> AbstractContextManager[None]:
        """The EMA is in the parameters while a file is written from them."""
        return self.in_place()

    def raw(self) -> AbstractContextManager[None]:
        """The raw weights are in the parameters, also within `in_place`."""
        return nullcontext() if self.shadow is None else self.shadow.raw()

    def raw_for_saving(self) -> AbstractContextManager[None]:
        """The raw weights are in the parameters in a form that can be written to a file."""
        return nullcontext()

    def entries(self) -> Iterator[tuple[str, Any, Any]]:
        """(name, weights, average) of all that is averaged."""
        return self.made().pairs()

    def norms(self) -> tuple[float, float]:
        """(||average - weights|| ** 2, ||weights|| ** 2)."""
        return squared_norms(self.made())

    def save_state(self, file: Path) -> None:
        """Write the EMA's state. Raises OSError; nothing is there then."""
        self.catch_up()
        if self.shadow is not None:
            checkpoint.save(file, self.shadow.state_dict())

    def everywhere(self, found: bool) -> bool:
        """Whether a state's files have been found, by all processes that read them."""
        return found

    def load_state(self, file: Path) -> list[str]:
        """Go on from it; what differs, one sentence each. Raises ValueError for another model's."""
        return self.made().load_state_dict(checkpoint.load(file))

    # ------------------------------------------------------------------ the shadow

    def made(self) -> Shadow:
        """The shadow; made now if nobody has needed it before."""
        if self.shadow is None:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            named = zip(self.average.names_of(parameters), parameters, strict=True)
            self.shadow = self._shadow_of(list(named))
        return self.shadow

    def _shadow_of(self, named: Sequence[tuple[str, Any]]) -> Shadow:
        options = self.average.options
        return Shadow(
            named,
            self.average.schedule(),
            update_every=options.update_every,
            start_step=options.start_step,
            dtype=getattr(torch, options.dtype),
            stochastic=options.dtype == "bfloat16",
            device=None if options.device == "cuda" else options.device,
            frozen_too=True,  # what an optimizer holds may be thawed at any step
        )


def _share_of_highest_rate(groups: Sequence[dict[str, Any]]) -> float | None:
    """The learning rate of this step as part of what it will be after a warm-up; None where the optimizer finds it."""
    if any("d" in group or group.get("auto_lr") for group in groups):  # Prodigy, D-Adaptation, AdaCoor
        return None
    rates = [(float(group["lr"]), float(group.get("initial_lr", group["lr"]))) for group in groups]
    return max((rate / highest for rate, highest in rates if highest), default=0.0)
