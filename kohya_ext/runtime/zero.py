"""DeepSpeed's engine as we read it: where ZeRO keeps which weights, and when a step has been made.

ZeRO 1 and 2 keep the weights in training, float32, as one flat tensor a group of parameters, of which each rank owns an
equal part; the model has all weights in its own dtype. With ZeRO 3 each parameter is divided among the ranks, and the
model has none while it does not compute. Frozen parameters are divided there too.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol

from torch import Tensor, distributed

from kohya_ext.ema.fragments import Fragment
from kohya_ext.ema.partitioned import Partition
from kohya_ext.ema.peers import TOKEN_BYTES

PARTITIONED_MODEL = 3  # the stage from which the model itself is divided


class Follower(Protocol):
    """What is told of an engine's steps."""

    def before_step(self) -> None:
        """A step may be made now."""

    def after_step(self) -> None:
        """A step has been made."""

    def catch_up(self) -> None:
        """All have been told of the step."""


@dataclass(frozen=True)
class LocatedFragment:
    """Where a fragment is: `length` elements from `offset` on in one of the flat tensors; `start` as in a fragment."""

    name: str
    start: int
    length: int
    flat: int
    offset: int


class Zero:
    """One engine, and the partition of this rank.

    All ranks make theirs at the same time.

    Args:
        engine: that DeepSpeed has made of a model and its optimizer.
        names_of: gives parameters their names.
    """

    def __init__(self, engine: Any, names_of: Callable[[Sequence[Any]], list[str]]) -> None:
        parameters = list(engine.module.parameters())
        self.engine = engine
        self.parameters: dict[str, Any] = dict(zip(names_of(parameters), parameters, strict=True))
        self.stage = int(engine.zero_optimization_stage())
        saved = self._in_trained_models()
        fragments = [
            fragment for name in self.parameters if name in saved and (fragment := self._fragment(name)) is not None
        ]
        self.partition = Partition(fragments, distributed.get_rank(), _host(), _token(), _all_gather)
        self.rows = [self._row(fragment) for fragment in fragments if fragment.averaged]
        self.rows_of_ranks: Sequence[Sequence[tuple[Any, ...]]] = _all_gather([astuple(row) for row in self.rows])
        self._followers: list[Follower] = []
        self._watch_steps()

    @property
    def divides_model(self) -> bool:
        """Whether the model has no whole weights of its own."""
        return self.stage >= PARTITIONED_MODEL

    def follow(self, follower: Follower) -> None:
        """Tell `follower` of each step from now on."""
        self._followers.append(follower)

    def working_fragments(self) -> Iterator[tuple[str, Tensor]]:
        """ZeRO 3: this rank's part of each averaged parameter as the model computes with it."""
        for fragment in self.partition.fragments:
            if fragment.averaged:
                yield fragment.name, self.parameters[fragment.name].ds_tensor.data[: fragment.weights.numel()]

    def release(self) -> None:
        """ZeRO 3: forget whole weights that ranks have put together: they are made from their parts again."""
        self.engine.empty_partition_cache()

    # ------------------------------------------------------------------ states

    def flats(self) -> list[Tensor]:
        """The flat tensors that the optimizer steps on this rank; none without ZeRO."""
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            found = getattr(self.engine.optimizer, name, None)
            if found is not None:
                return list(found)
        return []

    def optimizer_state(self, flat: Tensor) -> dict[str, Any]:
        """What the optimizer keeps of a flat tensor."""
        state: dict[str, Any] = self.engine.optimizer.optimizer.state[flat]
        return state

    @property
    def steps_made(self) -> tuple[int, int]:
        """(all steps of the engine, those of them that were skipped)."""
        return int(self.engine.global_steps), int(self.engine.skipped_steps)

    def continue_from(self, steps: int, skipped: int, loss_scaler: Any) -> None:
        """Count from there, with the scale of losses that was found by then."""
        self.engine.global_steps, self.engine.skipped_steps = steps, skipped
        if loss_scaler is not None:
            self.engine.optimizer.loss_scaler = loss_scaler

    def _row(self, fragment: Fragment) -> LocatedFragment:
        size = fragment.weights.element_size()
        for number, flat in enumerate(self.flats()):
            offset = (fragment.weights.data_ptr() - flat.data_ptr()) // size
            if flat.device == fragment.weights.device and 0 <= offset < flat.numel():
                return LocatedFragment(fragment.name, fragment.start, fragment.weights.numel(), number, offset)
        return LocatedFragment(fragment.name, fragment.start, fragment.weights.numel(), 0, 0)

    # ------------------------------------------------------------------ inside

    def _watch_steps(self) -> None:
        step = self.engine.step

        @functools.wraps(step)
        def step_and_tell(*given: Any, **named: Any) -> Any:
            for follower in self._followers:
                follower.before_step()
            before = self._steps()
            result = step(*given, **named)
            if self._steps() > before:  # neither accumulated only, nor skipped because gradients were not finite
                for follower in self._followers:
                    follower.after_step()
                for follower in self._followers:
                    follower.catch_up()
                self.partition.peers.advance()
            return result

        self.engine.step = step_and_tell

    def _steps(self) -> int:
        return int(self.engine.global_steps) - int(self.engine.skipped_steps)

    def _in_trained_models(self) -> set[str]:
        """The parameters of the models of which anything is trained: a LoRA is saved without the model that it is for.

        Kohya gives DeepSpeed all its models as one.
        """
        together = self.engine.module
        models = list(getattr(together, "models", {"": together}).values())
        trained = [model for model in models if any(parameter.requires_grad for parameter in model.parameters())]
        known = {id(parameter) for model in trained for parameter in model.parameters()}
        return {name for name, parameter in self.parameters.items() if id(parameter) in known}

    def _fragment(self, name: str) -> Fragment | None:
        """What this rank keeps of a parameter; None where that is nothing, or where every rank has all of it."""
        parameter = self.parameters[name]
        if hasattr(parameter, "ds_id"):
            return self._fragment_of_divided(name, parameter)
        if not hasattr(parameter, "_hp_mapping"):
            if not parameter.requires_grad:
                return None
            return Fragment(name, tuple(parameter.shape), 0, parameter.data.view(-1))  # DeepSpeed without ZeRO
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        start = int(mapping.lp_fragment_address.start)
        return Fragment(name, tuple(parameter.shape), start, mapping.hp_fragment.data)

    def _fragment_of_divided(self, name: str, parameter: Any) -> Fragment | None:
        optimizer, shape = self.engine.optimizer, tuple(parameter.ds_shape)
        size = int(parameter.ds_tensor.ds_numel)
        start = size * distributed.get_rank(group=parameter.ds_process_group)
        length = min(size, int(parameter.ds_numel) - start)
        if length < 1:
            return None
        if not parameter.requires_grad:
            return Fragment(name, shape, start, parameter.ds_tensor.data.view(-1)[:length], averaged=False)
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat = optimizer.fp32_partitioned_groups_flat[group]
        return Fragment(name, shape, start, flat.data[offset : offset + length])


def is_engine(thing: Any) -> bool:
    """Whether this is what DeepSpeed makes of a model."""
    return callable(getattr(thing, "zero_optimization_stage", None)) and hasattr(thing, "module")


def outlast_first_rank(zero: Zero) -> None:
    """From now on this process ends only after rank 0, which may need its part for the files that it saves last."""
    if distributed.is_initialized() and distributed.get_rank() > 0:
        atexit.register(_wait_for_first, zero)


def _wait_for_first(zero: Zero) -> None:
    if getattr(sys, "last_value", None) is None:  # one that fails must not keep the launcher from noticing it
        zero.partition.peers.wait_for_first()


def _all_gather(thing: Any) -> Sequence[Any]:
    things: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(things, thing)
    return things


def _token() -> bytes:
    token = [secrets.token_bytes(TOKEN_BYTES)]
    distributed.broadcast_object_list(token, src=0)
    return token[0]


def _host() -> str:
    """An address of this machine by which the other ranks reach it: that of the way to the first of them."""
    if os.environ.get("LOCAL_WORLD_SIZE") == str(distributed.get_world_size()):
        return "127.0.0.1"
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    family, kind, *_, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:  # nothing is sent
        probe.connect(address)
        return str(probe.getsockname()[0])


def without(found: bool) -> list[int]:
    """The ranks that say no: a collective operation."""
    return [rank for rank, answer in enumerate(_all_gather(found)) if not answer]
