"""A script's training step that only measures: it runs up to the loss, and nothing of the training moves.

A held-out batch takes the script's own way, model, noise, timesteps, loss weights and all. At `accelerator.backward`
its loss is noted and the rest of the step is left, out of the script's `with accelerator.accumulate(...)`: no backward
pass (so no hook of a fused one), no clipping, no optimizer, no scheduler. Behind it the script sees a step that did not
synchronize, so it counts, saves and samples nothing. What it logs of that batch is dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import NormalDist
from typing import Any

from kohya_ext.runtime.block_moves import finish_moves
from kohya_ext.runtime.run import run


class _Measured(BaseException):
    """The loss of a held-out batch is known; caught where the step ends."""


class Standstill:
    """The accelerator of one run, whose steps can be told to only measure. To be made before its models are prepared.

    quantile: of the timestep to measure at, None while the run trains. steps: optimizer steps made so far. drawn: how
    many draws of timesteps were replaced in the newest measurement.
    """

    def __init__(self, accelerator: Any, prepared: Callable[[Any], None]) -> None:
        """prepared: is called with each model once the accelerator has prepared it."""
        self.accelerator = accelerator
        self.models: list[Any] = []
        self.quantile: float | None = None
        self.steps = 0
        self.drawn = 0
        self._loss: float | None = None
        self._counter: Any = None
        self._counted: Any = None
        self._accumulate, self._backward = accelerator.accumulate, accelerator.backward
        accelerator.accumulate = self._accumulate_or_measure
        accelerator.backward = self._backward_or_note
        accelerator.prepare = self._noting(accelerator.prepare, prepared)
        self.log = accelerator.log
        accelerator.log = self.unless_measuring(accelerator.log)
        accelerator.init_trackers = self._muting(accelerator.init_trackers)

    @property
    def measuring(self) -> bool:
        """Whether the step in progress only measures."""
        return self.quantile is not None

    @property
    def step_of_loss(self) -> int:
        """The optimizer step that the newest loss of the training is a part of."""
        return self.steps + (not self.accelerator.sync_gradients)

    def unless_measuring(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which does nothing while a step only measures."""

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            return None if self.measuring else function(*args, **named)

        return call

    def take_loss(self) -> float:
        """The loss of the measurement just made. Raises RuntimeError where the script came to none."""
        if self._loss is None:
            raise RuntimeError("the script has not computed a loss for a held-out batch")
        loss, self._loss = self._loss, None
        return loss

    @contextmanager
    def still(self, counter: Any) -> Iterator[None]:
        """Around a whole validation: evaluation modes, and the accelerator's flags as they were afterwards.

        counter: the script's shared count of steps, which it sets at each batch; its data sets and states read it.
        """
        state = self.accelerator.gradient_state
        self._counter, self._counted = counter, getattr(counter, "value", None)
        synchronized = state.sync_gradients
        modes = [(module, module.training) for model in self.models for module in model.modules()]
        norms = [model for model in self.models if hasattr(model, "apply_max_norm_regularization")]
        try:
            for model in self.models:
                model.eval()
            for model in norms:  # scripts scale weights behind the step, which would reach the EMA
                model.apply_max_norm_regularization = lambda *_: (0, 0.0, 0.0)
            state._set_sync_gradients(False)
            yield
        finally:
            self.quantile = None
            state._set_sync_gradients(synchronized)
            for model in norms:
                del model.apply_max_norm_regularization
            for module, mode in modes:
                module.training = mode

    @contextmanager
    def _accumulate_or_measure(self, *models: Any) -> Iterator[Any]:
        if self.quantile is None:
            with self._accumulate(*models) as given:
                yield given
            self.steps += bool(self.accelerator.sync_gradients)
            return
        import torch

        if self._counter is not None:
            self._counter.value = self._counted
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(self.accelerator.no_sync(model))
            stack.enter_context(torch.no_grad())
            draws = stack.enter_context(fixed_timesteps(self.quantile))
            try:
                yield None
            except _Measured:
                self.drawn = len(draws)
        self._return_blocks()

    def _backward_or_note(self, loss: Any, *rest: Any, **named: Any) -> Any:
        if self.quantile is None:
            return self._backward(loss, *rest, **named)
        self._loss = float(loss.detach())
        raise _Measured

    def _return_blocks(self) -> None:
        """`--blocks_to_swap`: the backward pass would have brought the first blocks back."""
        for model in self.models:
            prepare = getattr(model, "prepare_block_swap_before_forward", None)
            if callable(prepare) and getattr(model, "blocks_to_swap", None):
                finish_moves([model])
                prepare()

    def _noting(self, prepare: Callable[..., Any], prepared: Callable[[Any], None]) -> Callable[..., Any]:
        @functools.wraps(prepare)
        def prepare_and_note(*given: Any, **named: Any) -> Any:
            import torch

            result = prepare(*given, **named)
            for model in (one for one in given if isinstance(one, torch.nn.Module)):
                self.models.append(model)
                prepared(model)
            return result

        return prepare_and_note

    def _muting(self, init_trackers: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(init_trackers)
        def init_and_mute(*args: Any, **named: Any) -> Any:
            result = init_trackers(*args, **named)
            for tracker in self.accelerator.trackers:
                tracker.log = self.unless_measuring(tracker.log)
            return result

        return init_and_mute


@contextmanager
def fixed_timesteps(quantile: float) -> Iterator[list[str]]:
    """While this lasts, a draw of one number an image gives `quantile` of its distribution; yields which were made.

    That is how every script draws its timesteps: by `randint`, or by `rand`, `randn` or `normal` which it maps to them
    (noise has more dimensions; a random strength of the noise offset is a `rand(1)`). Real draws are made, too.
    """
    import torch

    draws: list[str] = []
    normal = NormalDist().inv_cdf(quantile)

    def replaced(name: str, value: Callable[[dict[str, Any]], float]) -> Callable[..., Any]:
        real = getattr(torch, name)

        @functools.wraps(real)
        def draw(*args: Any, **named: Any) -> Any:
            result = real(*args, **named)
            if _one_an_image(name, result, args, named):
                draws.append(name)
                result.fill_(value(_by_name(name, args, named)))
            return result

        return draw

    values: dict[str, Callable[[dict[str, Any]], float]] = {
        "rand": lambda _: quantile,
        "randn": lambda _: normal,
        "normal": lambda call: float(call["mean"]) + float(call["std"]) * normal,
        "randint": lambda call: int(call["low"]) + int(quantile * (int(call["high"]) - int(call["low"]))),
    }
    real = {name: getattr(torch, name) for name in values}
    try:
        for name, value in values.items():
            setattr(torch, name, replaced(name, value))
        yield draws
    finally:
        for name, function in real.items():
            setattr(torch, name, function)


def _one_an_image(name: str, result: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    if result.dim() != 1 or named.get("generator") is not None:
        return False
    return name != "rand" or not (args and isinstance(args[0], int))


def _by_name(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """What the call of `randint` or `normal` says, under the names of the parameters."""
    given = {"low": 0, "mean": 0.0, "std": 1.0}
    if name == "normal":
        given.update(zip(("mean", "std"), args, strict=False))
    elif name == "randint":
        numbers = [one for one in args if isinstance(one, int)]
        given.update({"high": numbers[0]} if len(numbers) == 1 else dict(zip(("low", "high"), numbers, strict=False)))
    return given | named


def replace_recorder(modules: dict[str, Any], name: str, add: Callable[..., Callable[..., Any]]) -> bool:
    """Put `add(original)` in the place of method `add` of each class of this name in Kohya's modules; False: none.

    Before the first step there is nothing to average yet, where some releases divide by zero.
    """
    kinds = {vars(module).get(name) for full, module in list(modules.items()) if full.partition(".")[0] == "library"}
    found = [kind for kind in kinds if isinstance(kind, type)]
    for kind in found:
        run.replace(kind, "add", add(kind.add))  # type: ignore[attr-defined]
        run.replace(kind, "moving_average", property(_zero_before_the_first(kind.moving_average)))  # type: ignore[attr-defined]
    return bool(found)


def _zero_before_the_first(average: property) -> Callable[[Any], float]:
    def moving_average(recorder: Any) -> float:
        return average.__get__(recorder) if recorder.loss_list else 0.0

    return moving_average
