"""Runs a training script as it is, with real tensors, and counts what is alive: what a preflight's count is held to.

    python rig_counted.py REPORT SCRIPT FLAGS...

It shares nothing with the package's own counting: storages are followed by torch's own weak references and looked
through when a new peak may be there, and what a part takes is asked of the objects that hold it.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNIT = 512  # bytes: what a GPU's allocator rounds up to


def rounded(size: int) -> int:
    return -(-size // UNIT) * UNIT


class Counted(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    """phase: what the script is doing. peaks: phase -> most bytes that were alive in it."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "before"
        self.peaks: dict[str, int] = {}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0  # what is alive at most: what has been freed since the last look is still in it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self._see(tensor.untyped_storage())
        if self.most > self.peaks.get(self.phase, 0):
            self.look()
        return made

    def _see(self, storage: Any) -> None:
        known = self.alive.get(storage._cdata)
        if known is None or known[0].expired():
            self.most += rounded(storage.nbytes()) - (known[1] if known else 0)
            self.alive[storage._cdata] = (StorageWeakRef(storage), rounded(storage.nbytes()))

    def look(self) -> None:
        """Count what is still there."""
        for key in [key for key, (reference, _) in self.alive.items() if reference.expired()]:
            self.most -= self.alive.pop(key)[1]
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.most)

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.look()

    def hold(self, tensors: Iterable[Any]) -> None:
        """What no operation made: read from a file."""
        for tensor in tensors:
            self._see(tensor.untyped_storage())


def size_of(tensors: Iterable[Any]) -> int:
    """Bytes of the storages of some tensors."""
    found = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors if tensor_of(one)}
    return sum(map(rounded, found.values()))


def tensor_of(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


class Watch:
    """report: what was seen."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.report: dict[str, Any] = {"steps": 0}

    def begin(self) -> None:
        """The loop begins: weights that were read from files are there."""
        self.counted.hold(one for one in gc.get_objects() if isinstance(one, torch.nn.Parameter))
        self.counted.enter("forward")

    def step(self, optimizers: list[Any]) -> None:
        """A step is over; its gradients are still there, but those of a fused backward pass."""
        self.report["steps"] += 1
        self.report["groups"] = [
            [sum(one.numel() for one in group["params"] if one.requires_grad), float(group["initial_lr"])]
            for optimizer in optimizers
            for group in optimizer.param_groups
        ]
        held = [one for module in modules() for one in held_by(module)]
        states = [one for optimizer in optimizers for one in optimizer.state.values()]
        self.report["parts"] = {
            "weights": size_of(held),
            "gradients": size_of(one.grad for one in held),
            "optimizer": size_of(value for state in states for value in state.values()),
            "ema": size_of(shadows()),
        }


def held_by(module: torch.nn.Module) -> list[Any]:
    """Weights, buffers, and tables in plain attributes, of its own or of a plain object, as Lumina's of positions."""
    plain = [value for value in vars(module).values() if not isinstance(value, torch.nn.Module)]
    inside = [one for value in plain if hasattr(value, "__dict__") for one in vars(value).values()]
    tables = [value for value in (*plain, *inside) if isinstance(value, (torch.Tensor, list, tuple))]
    return [*module.parameters(False), *module.buffers(False), *filter(tensor_of, tree_leaves(tables))]


def modules() -> list[torch.nn.Module]:
    return [one for one in gc.get_objects() if isinstance(one, torch.nn.Module)]


def shadows() -> Iterable[Any]:
    if "kohya_ext.runtime.run" not in sys.modules:
        return []
    tracks = [track for average in sys.modules["kohya_ext.runtime.run"].run.averages for track in average.tracks]
    return [shadow for track in tracks if track.shadow is not None for _, _, shadow in track.shadow.pairs()]


def watch(counted: Counted) -> Watch:
    """Wrap what every script uses of accelerate."""
    import accelerate
    from torch.utils.data import DataLoader

    seen = Watch(counted)
    iterate = DataLoader.__iter__

    @functools.wraps(iterate)
    def iter_(self: Any) -> Any:
        if type(self.dataset).__name__ == "DatasetGroup":
            seen.report["batches"] = len(self)
            seen.begin()
        return iterate(self)

    def after_step(schedule: Any) -> None:
        if schedule.gradient_state.sync_gradients:
            seen.step([getattr(one, "optimizer", one) for one in schedule.optimizers])

    DataLoader.__iter__ = iter_
    within(accelerate.Accelerator, "backward", counted, "backward")
    within(accelerate.optimizer.AcceleratedOptimizer, "step", counted, "optimizer")
    within(accelerate.scheduler.AcceleratedScheduler, "step", counted, "forward", after_step)
    return seen


def within(owner: Any, name: str, counted: Counted, phase: str, then: Callable[[Any], None] | None = None) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = counted.phase
        counted.enter(phase)
        try:
            result = original(self, *args, **kwargs)
            if then is not None:
                then(self)
            return result
        finally:
            counted.enter(before)

    setattr(owner, name, call)


def main(report: str, script: str, *flags: str) -> None:
    sys.argv = [script, *flags]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))  # noqa: PTH100, PTH120
    counted = Counted()
    seen = watch(counted)
    with counted:
        runpy.run_path(script, run_name="__main__")
    Path(report).write_text(json.dumps({**seen.report, "peaks": counted.peaks}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
