"""Which path a parameter takes, decided once for a group's settings and the dtypes and device of its tensors.

What is decided holds until a setting changes; only what can change between two steps without leaving a trace there
(memory layout, a pending sign) is looked at in each.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim import accumulator, compiled, distance, torch_adagrad, trial
from kohya_ext.optim.eager import Job, Kind, QuickStep, SkipCount, SlicedStep, step_many
from kohya_ext.optim.functional import Rule
from kohya_ext.tensors.elements import flat_views, is_fake, local, overlap

# index, parameter, gradient, state (None before the first step): a plain tuple, one a parameter and step
Due = tuple[int, Tensor, Tensor, "dict[str, Any] | None"]


def gathers(foreach: bool | None, fused: bool | None, device: torch.device) -> bool:
    """Whether small tensors are stepped together: where asked for, next to compiled steps, and on any GPU."""
    if foreach is None:
        return device.type != "cpu" or bool(fused)
    return foreach


class Gathering:
    """The jobs of one step that are left to be stepped together, after the others.

    None where any of the weights due have memory in common: what is gathered is read before it is written, and the
    order of steps counts there. alone: a single parameter is due.
    """

    def __init__(self, members: Sequence[Due]) -> None:
        self.jobs: list[Job] = []
        self.alone = len(members) == 1
        self._members = members
        self._open: bool | None = None

    def takes(self, job: Job) -> bool:
        """Keep a job, if jobs are gathered in this step."""
        if self._open is None:  # asked by the first: until then all have been stepped in their order
            self._open = not overlap([local(parameter.data) for _, parameter, _, _ in self._members])
        if self._open:
            self.jobs.append(job)
        return self._open


class GroupPlan:
    """The steps of one group under the settings it has now.

    settings: of the group, as `settings.values` returns them; the plan is for these alone. state_bits: one of them.
    """

    def __init__(
        self,
        settings: tuple[Any, ...],
        rule: Rule,
        foreach: bool | None,
        fused: bool | None,
        sliced: SlicedStep,
        skips: SkipCount,
    ) -> None:
        self.settings = settings
        self.state_bits = rule.state_bits
        self._rule = rule
        self._foreach = foreach
        self._fused = fused
        self._sliced = sliced
        self._skips = skips
        self._quick: dict[Kind, QuickStep | None] = {}
        self._gathered: set[Kind] = set()
        self._tried: dict[Kind, bool] = {}
        self._needed = {"vt"} | ({"moved"} if rule.auto_lr else set()) | ({"momentum"} if rule.momentum else set())

    def step(self, members: Sequence[Due], states: MutableMapping[Tensor, dict[str, Any]]) -> int:
        """Step each of these in place; returns how many elements they have. states: where new ones are to be kept."""
        elements = 0
        together = Gathering(members)
        by_itself: list[Job] = []
        for index, parameter, gradient, state in members:
            weights = parameter.data
            whole = type(weights) is type(gradient) is Tensor  # neither sharded nor fake
            if not whole:
                weights, gradient = local(weights), local(gradient)
                if not weights.numel():  # of another process's
                    continue
            if state is None:
                state = states[parameter]
            if not self._needed <= state.keys():
                self._complete(parameter, state)
            state["step"] += 1
            vt = state["vt"] if whole else local(state["vt"])
            elements += weights.numel()
            kind = (weights.dtype, gradient.dtype, vt.dtype, weights.device)
            quick = None
            if whole or not is_fake(weights):  # for a fake one no scratch is prepared
                quick = self._quick[kind] if kind in self._quick else self._decide(kind)
            if not (weights.is_contiguous() and gradient.is_contiguous() and vt.is_contiguous()):
                self._step_strided(index, weights, gradient, vt, state, together)
                continue
            flat, newest, sums = weights.view(-1), gradient.view(-1), vt.view(-1)
            if quick is not None:
                quick(flat, newest, sums, None)
                continue
            job = Job(flat, newest, {**state, "vt": sums}, state["step"], index)
            if self._rule.momentum:
                job.state["momentum"] = local(state["momentum"]).view(-1)
            if not self._joins(job, together, kind in self._gathered):
                self._dispatch(job)
                by_itself.append(job)
        if together.jobs:
            self._step_together(together.jobs)
        self._measure(together.jobs + by_itself)
        return elements

    def _complete(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """Give a parameter the state that it lacks: all of it at its first step, some where a setting has changed."""
        if "vt" not in state:
            state["step"] = 0
            state.update(accumulator.fresh(parameter, self._rule.state_bits))
        if self._rule.auto_lr and "moved" not in state:
            state.update(distance.fresh(parameter))
        if self._rule.momentum and "momentum" not in state:
            state["momentum"] = accumulator.fresh_momentum(parameter, self._rule.state_bits)

    def _decide(self, kind: Kind) -> QuickStep | None:
        """The quick step of this kind, where nothing else about the tensors matters."""
        if gathers(self._foreach, self._fused, kind[3]):
            self._gathered.add(kind)
        other_path = self._fused or self._rule.extended or kind in self._gathered or self._may_take_torchs_kernel(kind)
        quick = self._quick[kind] = None if other_path else self._sliced.quick(self._rule, kind)
        return quick

    def _may_take_torchs_kernel(self, kind: Kind) -> bool:
        return self._fused is None and not self._foreach and torch_adagrad.available(self._rule, kind)

    def _step_strided(
        self,
        index: int,
        weights: Tensor,
        gradient: Tensor,
        vt: Tensor,
        state: dict[str, Any],
        together: Gathering,
    ) -> None:
        """The same where not all are contiguous: on flat views, where there are any, else on copies.

        Contiguous, as torch's own kernels take that for granted: given a flat view with gaps, as `reshape` may return,
        they write into the gaps.
        """
        if self._rule.auto_lr and vt.stride() == weights.stride() != gradient.stride():
            # the sample is of places in memory, and must stay one of the same elements
            gradient = torch.empty_like(weights, dtype=gradient.dtype).copy_(gradient)
        tensors = [weights, gradient, vt, *([local(state["momentum"])] if self._rule.momentum else [])]
        # codes and their blocks are in the logical order of the elements
        views = flat_views(*tensors) if vt.dtype != torch.uint8 else None
        flat = views or [tensor.reshape(-1).contiguous() for tensor in tensors]
        job = Job(flat[0], flat[1], {**state, "vt": flat[2]}, state["step"], index)
        if self._rule.momentum:
            job.state["momentum"] = flat[3]
        if views is not None and self._joins(job, together):
            return
        self._dispatch(job)
        self._measure([job])
        if views is None:
            for own, copy in zip(tensors, flat, strict=True):
                if own is not gradient and not own.is_contiguous():
                    own.copy_(copy.view(own.shape))

    def _joins(self, job: Job, together: Gathering, for_sure: bool = False) -> bool:
        """Leave a job for the step of those gathered, if it is one of them. for_sure: all of its kind are."""
        if together.alone or not (for_sure or self._is_gathered(job)):
            return False
        return together.takes(job)

    def _is_gathered(self, job: Job) -> bool:
        """Whether a job, among others, is stepped together with them."""
        if gathers(self._foreach, self._fused, job.weights.device) or self._is_compiled(job):
            return True
        return job.weights.numel() <= torch_adagrad.SMALL and self._takes_torchs_kernel(job)

    def _step_together(self, jobs: list[Job]) -> None:
        """Step what `_is_gathered`."""
        large, gathered, small = [], [], []
        for job in jobs:
            if self._is_compiled(job):
                large.append(job)
            elif gathers(self._foreach, self._fused, job.weights.device):
                gathered.append(job)
            else:
                small.append(job)
        self._step_compiled(large)
        step_many(self._sliced, self._rule, gathered)
        torch_adagrad.step_many(self._sliced, self._rule, small)

    def _step_compiled(self, jobs: list[Job]) -> None:
        for count in compiled.step_many(self._rule, jobs):
            self._skips.add_count(count)

    def _dispatch(self, job: Job) -> None:
        if self._takes_torchs_kernel(job):
            torch_adagrad.step_(self._sliced, self._rule, job.weights, job.gradient, job.state["vt"])
        elif self._is_compiled(job):
            self._step_compiled([job])
        else:
            self._sliced.step(self._rule, job.weights, job.gradient, job.state, job.step, job.place)

    def _measure(self, jobs: Sequence[Job]) -> None:
        """Note how far these have moved, where that decides how far the next steps go."""
        if self._rule.auto_lr:
            distance.note(self._rule, [(job.gradient, job.state) for job in jobs])

    def _is_compiled(self, job: Job) -> bool:
        if is_fake(job.weights):
            return False
        if self._fused is None and self._foreach is None:
            return job.weights.numel() >= trial.SMALLEST and self._may_compile(_kind_of(job))
        return bool(self._fused) and job.weights.numel() >= compiled.SMALLEST

    def _may_compile(self, kind: Kind) -> bool:
        if kind not in self._tried:
            self._tried[kind] = trial.passed(self._rule, kind)
        return self._tried[kind]

    def _takes_torchs_kernel(self, job: Job) -> bool:
        # the kernel does not see a pending sign
        return self._may_take_torchs_kernel(_kind_of(job)) and not (
            job.gradient.is_neg() or job.weights.is_neg() or is_fake(job.weights)
        )


def _kind_of(job: Job) -> Kind:
    return (job.weights.dtype, job.gradient.dtype, job.state["vt"].dtype, job.weights.device)
