"""The compiled update against the eager one: equal to the last bit or so, and as strict with non-finite weights."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from kohya_ext.ema import Schedule, Shadow, constant, debiased

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("schedule", [debiased(0.9), constant(0.999)], ids=lambda schedule: schedule.name)
def test_compiled_and_eager_agree(dtype: torch.dtype, schedule: Schedule) -> None:
    results = []
    for compiled in (False, True):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in (70_001, 40_000, 5)]
        shadow = Shadow(params, schedule, compiled=compiled)
        shadow.capture()
        for _ in range(8):
            for parameter in params:
                parameter.data += torch.randn(parameter.shape, generator=generator).to(dtype)
            params[0].data[3] = float("nan")
            params[1].data[7] = float("inf")
            shadow.update()
            params[0].data[3] = params[1].data[7] = 0.0
        results.append([average for _, _, average in shadow.pairs()])
    for eager, fast in zip(*results, strict=True):
        assert torch.isfinite(fast).all()
        torch.testing.assert_close(fast, eager, rtol=1e-6, atol=1e-6)
