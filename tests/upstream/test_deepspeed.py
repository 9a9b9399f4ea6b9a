"""ZeRO 1, 2 and 3 of a real DeepSpeed: weights and EMA are those of one process in float64, for any number of ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.upstream import deepspeeds
from tests.upstream.zero_toy import FROZEN, SHAPES, gradient, start

pytestmark = pytest.mark.upstream
EPS = 1e-8
RATE = 100.0 * math.sqrt(EPS)
DECAY = 0.9
STEPS = 4
TRAINED = [name for name in SHAPES if name != FROZEN]
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 4}}
Weights = dict[str, Tensor]


def by_hand(batches: list[list[int]]) -> list[tuple[Weights, Weights]]:
    """(weights, debiased EMA) after each step in float64. batches: whose gradients are averaged for each step."""
    weights = {name: start(name).double() for name in TRAINED}
    sums = {name: torch.zeros_like(weights[name]) for name in TRAINED}
    total, averaged = 0.0, {name: torch.zeros_like(weights[name]) for name in TRAINED}
    steps = []
    for numbers in batches:
        for name in TRAINED:
            mean = torch.stack([gradient(name, number).double() for number in numbers]).mean(0)
            sums[name] = sums[name] + mean.square()
            weights[name] = weights[name] - RATE * mean / (sums[name].sqrt() + math.sqrt(EPS))
        total = DECAY * total + 1 - DECAY
        averaged = {name: DECAY * averaged[name] + (1 - DECAY) * weights[name] for name in TRAINED}
        steps.append((dict(weights), {name: averaged[name] / total for name in TRAINED}))
    return steps


def close(found: Weights, expected: Weights, tolerance: float = 2e-6) -> None:
    for name, tensor in expected.items():
        (ours,) = [value for key, value in found.items() if f".{name}." in key]
        torch.testing.assert_close(ours.double(), tensor, rtol=tolerance, atol=tolerance)


def seen(folder: Path, step: int) -> dict[str, Weights]:
    found: dict[str, Weights] = torch.load(folder / f"step{step}.pt")
    return found


def check(folder: Path, batches: list[list[int]], *, first: int = 1, dtype: torch.dtype = torch.float32) -> None:
    """All that was seen after each step is what it has to be; `batches` are those since the start."""
    for raw, ema in by_hand(batches)[first - 1 :]:
        step = batches[first - 1][-1]
        found = seen(folder, step)
        close(found["raw"], raw)
        close(found["ema"], ema)
        close(found["saved ema"], ema)
        close(
            found["saved raw"],
            {name: tensor.to(dtype).double() for name, tensor in raw.items()},
            2e-6 + rounding(dtype),
        )
        for kind in ("saved raw", "saved ema"):
            assert torch.equal(found[kind][f"terms.{FROZEN}.weight"].float(), start(FROZEN))
        first += 1


def rounding(dtype: torch.dtype) -> float:
    return 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps


@STAGES
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_weights_and_ema_are_those_of_one_process(stage: int, ranks: int, tmp_path: Path) -> None:
    deepspeeds.toy(ranks, tmp_path, stage, 1, STEPS)
    check(tmp_path, [[step] for step in range(1, STEPS + 1)])
    held = [json.loads((tmp_path / f"held{rank}.json").read_text()) for rank in range(ranks)]
    trained = sum(torch.Size(SHAPES[name]).numel() for name in TRAINED)
    # 4 bytes of the EMA and 4 of the accumulator (2 with 16 bits) for each weight, divided; partitions are padded
    assert sum(one["shadow"] for one in held) == 4 * trained
    assert max(one["shadow"] for one in held) <= 4 * (trained / ranks + 64)
    assert max(one["state"] for one in held) <= 4 * (trained / ranks + 64)


@STAGES
def test_the_ema_is_of_the_float32_weights_of_a_16_bit_model(stage: int, tmp_path: Path) -> None:
    deepspeeds.toy(2, tmp_path, stage, 1, STEPS, config=BF16)
    check(tmp_path, [[step] for step in range(1, STEPS + 1)], dtype=torch.bfloat16)


@STAGES
def test_gradient_accumulation_counts_once(stage: int, tmp_path: Path) -> None:
    deepspeeds.toy(2, tmp_path, stage, 1, 2 * STEPS, config={"gradient_accumulation_steps": 2})
    check(tmp_path, [[2 * step - 1, 2 * step] for step in range(1, STEPS + 1)])


@STAGES
def test_a_step_that_is_skipped_for_an_overflow_is_not_counted(stage: int, tmp_path: Path) -> None:
    deepspeeds.toy(2, tmp_path, stage, 1, STEPS, config=FP16, overflow=2)
    check(tmp_path, [[step] for step in range(1, STEPS + 1) if step != 2], dtype=torch.float16)


@STAGES
def test_an_offloaded_optimizer_changes_nothing(stage: int, tmp_path: Path) -> None:
    more: dict[str, Any] = {"zero": {"offload_optimizer": {"device": "cpu"}}}
    deepspeeds.toy(2, tmp_path, stage, 1, STEPS, config={"zero_force_ds_cpu_optimizer": False}, **more)
    check(tmp_path, [[step] for step in range(1, STEPS + 1)])
