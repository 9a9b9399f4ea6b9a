"""What an optimizer really does to the weights: measured, not derived, so it holds for any optimizer.

Every N steps a sample of the weights is looked at before and after the step, as they are stored: what a bfloat16 weight
rounds away counts as not moved. Nothing here waits for the device before the figures are asked for, and nothing is
written but the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Elements of a parameter group that are looked at: a root mean square over so many is good to a per mille or so, and
# the copies take 8 MB.
SAMPLE = 1 << 20


@dataclass(frozen=True)
class Movement:
    """What one step did to the sample of one parameter group.

    update, gradient: root mean squares over the elements with a finite gradient; the update includes weight decay.
    moved: the share (0 to 1) of those elements whose stored value changed.
    """

    group: int
    update: float
    gradient: float
    moved: float

    @property
    def effective_lr(self) -> float:
        """The learning rate with which plain SGD would have moved the weights as far; NaN without any gradient."""
        return self.update / self.gradient if self.gradient > 0 else math.nan


class MovementMeter:
    """Measures every `every`-th step of one optimizer.

    It hooks into the optimizer's `step`. Where parameters are stepped one by one instead, in the backward pass, call
    `before` and `after` around each of these; a parameter's own steps are counted then.

    Args:
        optimizer: any of torch's kind.
        every: steps from one measurement to the next.
        sample: elements of a parameter group that are looked at; 2**20 by default.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, every: int, sample: int = SAMPLE) -> None:
        self._optimizer, self._every, self._sample = optimizer, every, sample
        self._steps = self._steps_before = 0
        self._steps_of: dict[int, int] = {}
        self._pending: dict[int, _Sampled] = {}
        self._sums: dict[int, Tensor] = {}
        self._known: dict[int, tuple[int, int]] = {}
        optimizer.register_step_pre_hook(lambda *_: self._before_step())
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    def continue_from(self, step: int) -> None:
        """Count as if `step` steps had been seen: a resumed run measures at the same ones as an uninterrupted run."""
        self._steps = self._steps_before = step

    def before(self, parameter: Tensor) -> None:
        """`parameter` is about to be stepped by itself; its gradient is there."""
        step = self._steps_of[id(parameter)] = self._steps_of.get(id(parameter), self._steps_before) + 1
        if step % self._every == 0:
            self._look_at(parameter, step)

    def after(self, parameter: Tensor) -> None:
        """`parameter` has been stepped by itself; its gradient may be gone already."""
        self._compare(parameter)

    def knows(self, parameter: Tensor) -> bool:
        """Whether `parameter` is one of this optimizer's."""
        return id(parameter) in self._places()

    def take(self) -> list[Movement]:
        """What was measured since the last call, a group each; empty in most steps. Waits for the device if not."""
        taken = []
        for group, sums in sorted(self._sums.items()):
            count, moved, update, gradient = sums.tolist()
            if count:
                taken.append(Movement(group, math.sqrt(update / count), math.sqrt(gradient / count), moved / count))
        self._sums.clear()
        return taken

    def _before_step(self) -> None:
        self._steps += 1
        self._pending.clear()  # of a step that ended in an exception
        if self._steps % self._every:
            return
        for parameter in self._parameters():
            if parameter.grad is not None:
                self._look_at(parameter, self._steps)

    def _after_step(self) -> None:
        if not self._pending:
            return
        for parameter in self._parameters():
            self._compare(parameter)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    @torch.no_grad()
    def _look_at(self, parameter: Tensor, step: int) -> None:
        gradient = parameter.grad
        if gradient is None or gradient.layout != torch.strided or not parameter.numel():
            return
        stride = self._stride_of(parameter)
        start = step * 7919 % stride  # not the same elements each time
        scale = getattr(self._optimizer, "grad_scale", None)  # a fused optimizer under GradScaler unscales by itself
        picked = _pick(gradient, start, stride).to(torch.float32)
        self._pending[id(parameter)] = _Sampled(
            start, stride, _pick(parameter, start, stride).clone(), picked if scale is None else picked / scale
        )

    @torch.no_grad()
    def _compare(self, parameter: Tensor) -> None:
        sampled = self._pending.pop(id(parameter), None)
        if sampled is None:
            return
        now = _pick(parameter, sampled.start, sampled.stride)
        usable = torch.isfinite(sampled.gradient)
        moved = (now != sampled.weights) & usable
        update = torch.where(moved, now.to(torch.float32) - sampled.weights.to(torch.float32), 0.0)
        gradient = torch.where(usable, sampled.gradient, 0.0)
        counted = [usable.sum(), moved.sum(), update.square().sum(), gradient.square().sum()]
        sums = torch.stack([value.to(torch.float32) for value in counted])
        group = self._places()[id(parameter)][0]
        before = self._sums.get(group)
        self._sums[group] = sums if before is None else before + sums.to(before.device)

    def _stride_of(self, parameter: Tensor) -> int:
        """Odd, so that it does not keep to one column of a matrix."""
        return -(-self._places()[id(parameter)][1] // self._sample) | 1

    def _places(self) -> dict[int, tuple[int, int]]:
        """Of each parameter: the number of its group, and how many elements that has."""
        groups = self._optimizer.param_groups
        if sum(len(group["params"]) for group in groups) != len(self._known):  # the first time, and with a new group
            for number, group in enumerate(groups):
                elements = sum(member.numel() for member in group["params"])
                self._known.update((id(member), (number, elements)) for member in group["params"])
        return self._known


@dataclass(frozen=True)
class _Sampled:
    start: int
    stride: int
    weights: Tensor
    gradient: Tensor


def _pick(tensor: Tensor, start: int, stride: int) -> Tensor:
    """Every `stride`-th element in logical order. A layout that has no flat view is copied for it, one at a time."""
    flat: Any = tensor.detach().reshape(-1)
    return flat[start % max(1, flat.numel()) :: stride]
