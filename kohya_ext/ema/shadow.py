"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from kohya_ext.ema import checkpoint
from kohya_ext.ema.blend import Averaged, Blender, Update, copy_finite
from kohya_ext.ema.device import FREE_SHARE, Placement, place
from kohya_ext.ema.insistence import insist
from kohya_ext.ema.joint import Joint
from kohya_ext.ema.parameters import check_dtype, named
from kohya_ext.ema.schedules import Schedule
from kohya_ext.ema.sharded import own_part, sharded_like
from kohya_ext.ema.swap import Swap
from kohya_ext.tensors.compiled import untraced
from kohya_ext.tensors.elements import local

FORMAT = 1


class Shadow:
    """A running average of parameters, updated after each real optimizer step.

    Memory is taken at `capture()`, just before the first real step: by then the trainer has cast and moved its weights.
    Parameters that need no gradient at that moment are skipped, for good, unless `frozen_too`.

    Args:
        params: dense floating-point tensors of any shape, or (name, tensor) pairs; names key the saved state. A tensor
            that occurs twice counts once. Of sharded ones (DTensor), each process averages its part.
        schedule: the decay of each step, see `kohya_ext.ema.schedules`.
        update_every: real steps an update, at least 1; the decay is compensated.
        start_step: real steps before averaging begins, at least 0.
        dtype: of the shadow: float32, float64, or bfloat16 with `stochastic`.
        stochastic: round a bfloat16 shadow stochastically, without which it would stand still.
        device: None (next to each parameter), a device, or `auto`: next to each parameter if memory allows, else in
            host memory, where it also waits for the optimizer's state if that decides.
        seed: of the stochastic rounding.
        compiled: True for compiled passes over all but small float32 and float64 shadows, which take some seconds at
            the first update and a C++ compiler or Triton; None for the same where it pays (from 16 million weights on)
            and where torch can compile.
        guarded: keep non-finite weights out; False only where the weights are known to be finite.
        frozen_too: average parameters that need no gradient too: DyLoRA freezes and thaws its own at every step.

    Raises:
        ValueError: settings out of range, or a dtype in which an average would stand still.
        TypeError: a parameter that is not dense and real, or whose elements share memory.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        schedule: Schedule,
        *,
        update_every: int = 1,
        start_step: int = 0,
        dtype: torch.dtype = torch.float32,
        stochastic: bool = False,
        device: torch.device | str | None = None,
        seed: int = 0,
        compiled: bool | None = None,
        guarded: bool = True,
        frozen_too: bool = False,
    ) -> None:
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, got {update_every}")
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step}")
        check_dtype(dtype, stochastic)
        self.schedule = schedule
        self.update_every = update_every
        self.start_step = start_step
        self.dtype = dtype
        self.seed = seed
        self.step = 0  # real steps seen
        self.updates = 0  # blends done
        self.placement: Placement | None = None
        self._wanted = device
        self._params = named(params)
        self._frozen_too = frozen_too
        self._index = {id(parameter): number for number, parameter in enumerate(self._params.values())}
        self._names = list(self._params)
        self._shadows: dict[str, Tensor] = {}
        self._averaged: list[Averaged] = []  # the same and its weights, ready for every step
        self._joint = Joint()
        self._started = False
        self._placed = False
        self._stepped: set[int] = set()  # parameters that update_param has done in the current step
        self._blender = Blender(compiled, guarded)
        self._swap: Swap | None = None

    # ------------------------------------------------------------------ updating

    def capture(self) -> None:
        """Take the start model. Call it before the first real step; later calls do nothing."""
        self._refuse_if_swapped("capture")
        if not self._shadows:
            chosen = {name: self._own(name) for name in self._chosen()}
            self.placement = place(list(chosen.values()), self.dtype, self._wanted, stepped=False)
            with torch.no_grad():
                for name, parameter in chosen.items():
                    self._shadows[name] = self._like(parameter)
                    copy_finite(parameter.detach(), self._shadows[name])
            self._settle()
            self._started = True
        elif not self._placed:
            self._place_anew()

    @untraced
    def update(self, *others: Shadow) -> None:
        """One real optimizer step is over: blend, if this step is one of every `update_every`.

        Where `update_param` has done some parameters of this step already, this does the others.

        Args:
            *others: further averages, whose step is over too. Of the same weights, kept in the same dtype and place,
                all are updated in one pass.
        """
        every = (self, *others)
        dues = [one._begin_update() for one in every]
        joint = self._joint_with(others) if None not in dues else None
        if joint is None:
            for one, due in zip(every, dues, strict=True):
                one._advance([entry for entry in one._averaged if entry[0] not in one._stepped], due)
        else:
            with torch.no_grad():
                remaining = [entry for entry in joint if entry[0] not in self._stepped]
                self._blender.blend(remaining, [due for due in dues if due is not None])
        for one, due in zip(every, dues, strict=True):
            one._end_update(due)

    def _joint_with(self, others: Sequence[Shadow]) -> list[Averaged] | None:
        """What to blend in one pass; None where each needs its own."""
        blender = self._blender
        if not others or any(one._stepped != self._stepped or not one._blender.is_like(blender) for one in others):
            return None
        joint = self._joint.of([self._averaged, *(one._averaged for one in others)])
        if joint is not None:
            for one in others:
                one._blender = blender  # counts what is kept out of all of them
        return joint

    def _begin_update(self) -> Update | None:
        self._refuse_if_swapped("update")
        self._require_start()
        return self._due()

    def _end_update(self, due: Update | None) -> None:
        if due is not None:
            self.updates = due.number
        self.step += 1
        self._stepped.clear()
        if self.placement is not None and not self.placement.final:
            self._place_anew()

    @untraced
    def update_param(self, parameter: Tensor) -> None:
        """The same for one parameter, right after its step in a fused backward pass.

        A parameter that comes round again ends the step; call `update()` at the end of each step to be exact also for
        parameters that got no gradient in it. Tensors that are not averaged are ignored.
        """
        number = self._index.get(id(parameter))
        if number is None:
            return
        if number in self._stepped:
            self.update()
        self._refuse_if_swapped("update_param")
        self._require_start()
        self._stepped.add(number)
        shadow = self._shadows.get(self._names[number])
        if shadow is not None:
            self._advance([(number, parameter, (shadow,))], self._due())

    # ------------------------------------------------------------------ reading

    def has_stepped(self, parameter: Tensor) -> bool:
        """Whether `update_param` has done this parameter in the current step."""
        return self._index.get(id(parameter)) in self._stepped

    @property
    def started(self) -> bool:
        """True once there is something to save or to sample from."""
        return self.updates > 0

    @property
    def leaves_free(self) -> float | None:
        """The share of a GPU's memory without which it is kept in host memory; None where it was told its place."""
        return FREE_SHARE if self._wanted == "auto" else None

    @property
    def swapped(self) -> bool:
        """True while the EMA is in the place of the weights."""
        return self._swap is not None

    @property
    def skipped(self) -> int:
        """How many non-finite weights were kept out so far (compiled updates do not count). Waits for the device."""
        return self._blender.skipped()

    @property
    def decay(self) -> float:
        """What the newest update left of the shadow before it (the decay over `update_every` steps)."""
        return 1.0 - self.schedule.weight(max(1, self.updates), self.update_every)

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, weights, shadow) of this process's part of all that is averaged. Do not write to the shadow."""
        for name, shadow in self._shadows.items():
            yield name, self._own(name).detach(), shadow

    def average_of(self, name: str) -> Tensor:
        """The average of one parameter, this process's part. Not a copy. Raises KeyError where it is not averaged."""
        return self._shadows[name]

    # ------------------------------------------------------------------ swapping

    @contextmanager
    def swap(self) -> Iterator[None]:
        """The EMA is in the parameters meanwhile; the raw weights come back bit for bit, whatever happens."""
        try:
            self.swap_in()
            yield
        finally:
            self.swap_out()

    @contextmanager
    def raw(self) -> Iterator[None]:
        """The raw weights are in the parameters while this lasts, also inside `swap()`."""
        was_swapped = self.swapped
        self.swap_out()
        try:
            yield
        finally:
            if was_swapped:
                self.swap_in()

    def swap_in(self) -> None:
        """Put the EMA into the parameters. On any exception the raw weights are back first."""
        self._refuse_if_swapped("swap_in")
        self._swap = Swap([(self._own(name), shadow) for name, shadow in self._shadows.items()])
        try:
            self._swap.put_in()
        except BaseException:
            self.swap_out()
            raise

    def swap_out(self) -> None:
        """Bring the raw weights back; does nothing when they are there. An interruption is raised after it is done."""
        insist(self._bring_back)

    def _bring_back(self) -> None:
        if self._swap is not None:
            self._swap.bring_back()
            self._swap = None

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs. No copies; averages of sharded weights are sharded alike."""
        self._refuse_if_swapped("state_dict")
        return {
            "format": FORMAT,
            "step": self.step,
            "updates": self.updates,
            "update_every": self.update_every,
            "start_step": self.start_step,
            "schedule": {"name": self.schedule.name, **asdict(self.schedule)},  # type: ignore[call-overload]
            "dtype": str(self.dtype).removeprefix("torch."),
            "seed": self.seed,
            "shadow": {name: sharded_like(shadow, self._params[name]) for name, shadow in self._shadows.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Continue from what `state_dict` returned. Settings stay those of this object.

        Whole tensors suit weights that are sharded in any way, sharded ones only those that are sharded alike.

        Returns:
            One sentence for each setting that differs in the state.

        Raises:
            ValueError: the state belongs to another model, is of another format or is damaged; nothing is changed then.
            RuntimeError: the EMA is in the place of the weights.
        """
        self._refuse_if_swapped("load_state_dict")
        if state.get("format") != FORMAT:
            raise ValueError(f"EMA state of format {state.get('format')!r}; this version reads format {FORMAT}")
        step, averaged = checkpoint.counts(state)
        shadows: dict[str, Tensor] = checkpoint.tensors(state)
        self._check_names(shadows)
        checkpoint.refuse_unusable(shadows)
        notes = self._differences(state)
        loaded = {name: own_part(shadows[name], self._params[name]) for name in self._names if name in shadows}
        # from here on nothing can fail
        self.step = step
        self.updates = -(-averaged // self.update_every)
        self._stepped.clear()
        self._shadows = loaded
        self._placed = False
        self._started = True
        return notes

    # ------------------------------------------------------------------ inside

    def _due(self) -> Update | None:
        averaged = self.step + 1 - self.start_step
        if averaged < 1 or averaged % self.update_every:
            return None
        number = averaged // self.update_every
        return Update(self.schedule.weight(number, self.update_every), number, self.seed)

    def _advance(self, averaged: list[Averaged], due: Update | None) -> None:
        """Take the weights as they are after this step: into the EMA, or as the start model of a late start."""
        with torch.no_grad():
            if due is not None:
                self._blender.blend(averaged, [due])
            elif self.step + 1 == self.start_step:
                for _, weights, (shadow,) in averaged:
                    copy_finite(weights, shadow)

    def _chosen(self) -> list[str]:
        """The names of what is to be averaged, as things stand now."""
        return [name for name in self._names if self._frozen_too or self._params[name].requires_grad]

    def _own(self, name: str) -> Tensor:
        with torch.no_grad():  # else of a sharded parameter, another tensor than the one that is stepped
            return local(self._params[name])

    def _require_start(self) -> None:
        if not self._started and not self.schedule.starts_fresh:
            raise RuntimeError(
                f"the schedule {self.schedule.name} needs the start model: call capture() before the first step"
            )
        if not self._placed:
            self.capture()

    def _place_anew(self) -> None:
        """Put shadows where they belong once the optimizer has its state: after a first step, or from a saved state."""
        weights = [self._own(name) for name in self._shadows]
        earlier, self.placement = self.placement, place(weights, self.dtype, self._wanted)
        if self._placed and earlier is not None and earlier.device == self.placement.device:
            return  # they waited in host memory, and stay there
        for name, before in self._shadows.items():
            # one at a time: no second copy of all
            self._shadows[name] = self._like(self._own(name)).copy_(before)
        self._settle()

    def _settle(self) -> None:
        """The shadows are there, and where they belong."""
        self._averaged = [
            (self._index[id(self._params[name])], self._params[name], (shadow,))
            for name, shadow in self._shadows.items()
        ]
        self._blender.size_up(sum(shadow.numel() for shadow in self._shadows.values()))
        self._placed = True

    def _like(self, parameter: Tensor) -> Tensor:
        device = self.placement.device if self.placement else None
        return torch.empty_like(parameter, dtype=self.dtype, device=device or parameter.device, requires_grad=False)

    def _refuse_if_swapped(self, what: str) -> None:
        if self._swap is not None:
            raise RuntimeError(f"{what} while the EMA is swapped in; leave swap() first")

    def _check_names(self, shadows: dict[str, Tensor]) -> None:
        expected = list(self._shadows) or self._chosen()
        missing = [name for name in expected if name not in shadows]
        unknown = [name for name in shadows if name not in self._params]
        if missing or unknown:
            first = missing[0] if missing else unknown[0]
            raise ValueError(
                f"EMA state of another model: {len(missing)} weights missing, {len(unknown)} unknown, "
                f"the first is {first!r}"
            )
        for name, shadow in shadows.items():
            if shadow.shape != self._params[name].shape:
                raise ValueError(
                    f"EMA state of another model: {name!r} has shape {tuple(shadow.shape)}, "
                    f"the weights {tuple(self._params[name].shape)}"
                )

    def _differences(self, state: dict[str, Any]) -> list[str]:
        own = self.state_dict()
        return [
            f"EMA {key} is now {own[key]}, was {state[key]} in the state"
            for key in ("schedule", "update_every", "start_step", "dtype")
            if key in state and own[key] != state[key]
        ]
