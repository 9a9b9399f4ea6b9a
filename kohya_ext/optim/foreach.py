"""The `foreach` path: many small tensors gathered into one slice, stepped together, and scattered back.

A LoRA has hundreds of tensors of a few thousand elements, where the number of calls costs more than the arithmetic.
Tensors larger than half a slice gain nothing and go through the sliced path, whose arithmetic this one uses as well.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from kohya_ext.optim.eager import SlicedStep
from kohya_ext.optim.functional import Rule, needs_words
from kohya_ext.tensors.elements import slice_size

_Kind = tuple[torch.device, torch.dtype, torch.dtype, torch.dtype]


@dataclass(frozen=True)
class Job:
    """One flat tensor to step, with everything this takes."""

    weights: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    step: int
    index: int


def step_many(sliced: SlicedStep, rule: Rule, jobs: list[Job]) -> None:
    """One step of each of the jobs, all under one rule."""
    batches: dict[_Kind, list[Job]] = defaultdict(list)
    sizes: dict[_Kind, int] = defaultdict(int)
    for job in jobs:
        if not _is_small(job) or needs_words(rule, job.weights.dtype, job.state["vt"].dtype):
            sliced.step(rule, job.weights, job.gradient, job.state, job.step, job.index)
            continue
        key = (job.weights.device, job.weights.dtype, job.gradient.dtype, job.state["vt"].dtype)
        if sizes[key] + job.weights.numel() > slice_size(job.weights.device):
            _step_batch(sliced, rule, batches.pop(key))
            sizes[key] = 0
        batches[key].append(job)
        sizes[key] += job.weights.numel()
    for batch in batches.values():
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


def _is_small(job: Job) -> bool:
    return job.weights.numel() <= slice_size(job.weights.device) // 2
