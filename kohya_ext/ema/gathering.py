"""Whole tensors from the averages of sharded weights, one by one: for files, and for other numbers of processes.

All processes of the run call these functions at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from kohya_ext.ema import checkpoint
from kohya_ext.ema.shadow import Shadow
from kohya_ext.tensors.elements import is_sharded


def whole_averages(shadow: Shadow) -> Iterator[tuple[str, Tensor]]:
    """(name, average) of all that is averaged, whole. No process has more than one of them at once.

    A process that stops before the last one leaves the others waiting.
    """
    for name, average in shadow.state_dict()["shadow"].items():
        yield name, average.full_tensor() if is_sharded(average) else average


def save(path: Path, shadow: Shadow) -> None:
    """Write an EMA's state, which `checkpoint.load` and `Shadow.load_state_dict` take on any number of processes.

    The first process writes it. The file appears whole or not at all.

    Raises:
        OSError: it cannot be written, on all processes.
    """
    state = shadow.state_dict()
    settings = {key: value for key, value in state.items() if key != "shadow"}
    forms = {name: (average.dtype, tuple(average.shape)) for name, average in state["shadow"].items()}
    averages = whole_averages(shadow)
    failure: list[str | None] = [None]
    if _is_first():
        try:
            checkpoint.save_streamed(path, settings, forms, (average for _, average in averages))
        except OSError as error:
            failure = [str(error)]
    for _ in averages:  # the others, and the first one where it could not write: each takes part in all
        pass
    if distributed.is_initialized():
        distributed.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise OSError(failure[0])


@contextlib.contextmanager
def swapped(shadow: Shadow, model: nn.Module) -> Iterator[None]:
    """The EMA is in the weights of a model that `fully_shard` has divided; after it the raw ones are back bit for bit.

    What the processes have put together to compute with is discarded before and after: it is not the swapped weights.
    """
    _discard_gathered(model)
    with shadow.swap():
        try:
            yield
        finally:
            _discard_gathered(model)


def _discard_gathered(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            reshard: Any = getattr(module, "reshard", None)
            if callable(reshard):
                reshard()


def _is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0
