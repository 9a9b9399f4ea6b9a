"""Scratch memory stays small whatever the size of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kohya_ext.optim import AdaCoor

LIMIT = 64 * 2**20


def peak_bytes(optimizer: AdaCoor) -> int:
    """Bytes allocated at the peak of one step beyond what was there before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"foreach": True},
        {"stochastic_state": True},
        {"state_bits": 32},
        {"state_bits": 8},
        {"auto_lr": True},
        {"auto_lr": True, "momentum": 0.9},
    ],
    ids=str,
)
def test_a_step_takes_little_memory(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    """12 million elements: one temporary of their size would already be 48 MB, and the published loop makes four."""
    params = [nn.Parameter(torch.ones(10_000_000, dtype=dtype)), *(nn.Parameter(torch.ones(20_000)) for _ in range(9))]
    optimizer = AdaCoor(params, **settings)
    for parameter in params:
        parameter.grad = torch.full_like(parameter, 1e-4)
    params[0].grad[5] = float("nan")
    optimizer.step()
    assert 0 < peak_bytes(optimizer) < LIMIT // 2
    assert optimizer.skipped == 2
