"""The `foreach` path: many small tensors gathered into one slice, stepped together, and scattered back.

A LoRA has hundreds of tensors of a few thousand elements, where the number of calls costs more than the arithmetic.
Tensors larger than half a slice gain nothing and go through the sliced path, whose arithmetic this one uses as well.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from kohya_ext.optim.eager import Kind, SlicedStep
from kohya_ext.optim.functional import Rule, needs_words
from kohya_ext.tensors.elements import slice_size


class Job(NamedTuple):
    """One flat tensor to step, with everything this takes. place: its index among the parameters."""

    weights: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    step: int
    place: int


def step_many(sliced: SlicedStep, rule: Rule, jobs: list[Job]) -> None:
    """One step of each of the jobs, all under one rule. No two of them have weights in common."""
    kinds: dict[Kind, list[Job]] = defaultdict(list)
    for job in jobs:
        weights = job.weights
        kinds[weights.dtype, job.gradient.dtype, job.state["vt"].dtype, weights.device].append(job)
    for (weights_dtype, _, state_dtype, device), alike in kinds.items():
        most = slice_size(device)
        # random bits depend on a tensor's own index and elements
        largest = 0 if needs_words(rule, weights_dtype, state_dtype) else most // 2
        batch: list[Job] = []
        size = 0
        for job in alike:
            elements = job.weights.numel()
            if elements > largest:
                sliced.step(rule, job.weights, job.gradient, job.state, job.step, job.place)
                continue
            if size + elements > most:
                _step_batch(sliced, rule, batch)
                batch, size = [], 0
            batch.append(job)
            size += elements
        if batch:
            _step_batch(sliced, rule, batch)


def _step_batch(sliced: SlicedStep, rule: Rule, jobs: list[Job]) -> None:
    all_weights = [job.weights for job in jobs]
    all_vt = [job.state["vt"] for job in jobs]
    weights, gradient, vt = torch.cat(all_weights), torch.cat([job.gradient for job in jobs]), torch.cat(all_vt)
    sliced.step(rule, weights, gradient, {"vt": vt}, 0, 0)
    _scatter(weights, all_weights)
    _scatter(vt, all_vt)


def _scatter(gathered: Tensor, targets: list[Tensor]) -> None:
    parts = list(gathered.split([target.numel() for target in targets]))
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(targets, parts)
        return
    for target, part in zip(targets, parts, strict=True):
        target.copy_(part)
