"""ZeRO 1, 2 and 3 of a real DeepSpeed: weights and EMA are those of one process in float64, for any number of ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.upstream import deepspeeds
from tests.upstream.zero_toy import FROZEN, SHAPES, gradient, start

pytestmark = pytest.mark.upstream
EPS = 1e-8
RATE = 100.0 * math.sqrt(EPS)
DECAY = 0.9
STEPS = 4
TRAINED = [name for name in SHAPES if name != FROZEN]
STAGES = (1, 2, 3)
PLAIN = [[step] for step in range(1, STEPS + 1)]
PADDING = 64  # elements of a partition, at most
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


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_weights_and_ema_are_those_of_one_process(ranks: int, tmp_path: Path) -> None:
    folders = {stage: tmp_path / str(stage) for stage in STAGES}
    deepspeeds.toy(ranks, *(deepspeeds.job(folder, stage, 1, STEPS) for stage, folder in folders.items()))
    trained = sum(torch.Size(SHAPES[name]).numel() for name in TRAINED)
    for folder in folders.values():
        check(folder, PLAIN)
        held = [json.loads((folder / f"held{rank}.json").read_text()) for rank in range(ranks)]
        # 4 bytes of the EMA and 4 of the accumulator (2 with 16 bits) for each weight, divided; partitions are padded
        assert sum(one["shadow"] for one in held) == 4 * trained
        assert max(one["shadow"] for one in held) <= 4 * (trained / ranks + PADDING)
        assert max(one["state"] for one in held) <= 4 * (trained / ranks + PADDING)


def test_accumulation_overflows_16_bits_and_offloading(tmp_path: Path) -> None:
    """The EMA is of the float32 weights; only real steps count."""
    twice = [[2 * step - 1, 2 * step] for step in range(1, STEPS + 1)]
    cases: dict[str, tuple[dict[str, Any], list[list[int]], torch.dtype]] = {
        "bf16": ({"config": BF16}, PLAIN, torch.bfloat16),
        "accumulation": ({"config": {"gradient_accumulation_steps": 2}, "last": 2 * STEPS}, twice, torch.float32),
        "overflow": ({"config": FP16, "overflow": 2}, [[1], [3], [4]], torch.float16),
        "offload": (
            {"config": {"zero_force_ds_cpu_optimizer": False}, "zero": {"offload_optimizer": {"device": "cpu"}}},
            PLAIN,
            torch.float32,
        ),
    }
    jobs = [
        deepspeeds.job(tmp_path / f"{name}{stage}", stage, 1, **{"last": STEPS, **more})
        for name, (more, _, _) in cases.items()
        for stage in STAGES
    ]
    deepspeeds.toy(2, *jobs)
    for name, (_, batches, dtype) in cases.items():
        for stage in STAGES:
            check(tmp_path / f"{name}{stage}", batches, dtype=dtype)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2), (2, 4)])
def test_a_state_goes_on_with_any_number_of_processes(before: int, after: int, tmp_path: Path) -> None:
    folders = {stage: tmp_path / str(stage) for stage in STAGES}
    states = {stage: str(deepspeeds.made(folder / "state")) for stage, folder in folders.items()}
    wide = {stage: tmp_path / f"bf16-{stage}" for stage in STAGES}
    wide_states = {stage: str(deepspeeds.made(folder / "state")) for stage, folder in wide.items()}
    small: dict[str, Any] = {"config": BF16, "bits": 16}
    straight = [deepspeeds.job(tmp_path / f"straight{stage}", stage, 1, STEPS, **small) for stage in STAGES]
    first = [deepspeeds.job(folders[stage], stage, 1, 2, save=states[stage]) for stage in STAGES]
    first += [deepspeeds.job(wide[stage], stage, 1, 2, save=wide_states[stage], **small) for stage in STAGES]
    deepspeeds.toy(before, *straight, *first)
    then = [deepspeeds.job(folders[stage], stage, 3, STEPS, resume=states[stage]) for stage in STAGES]
    then += [deepspeeds.job(wide[stage], stage, 3, STEPS, resume=wide_states[stage], **small) for stage in STAGES]
    deepspeeds.toy(after, *then)
    for stage in STAGES:
        check(folders[stage], PLAIN)
        for step in range(3, STEPS + 1):  # bf16 with 16-bit accumulators: the bits of the uninterrupted run
            found = seen(wide[stage], step)
            for kind, weights in seen(tmp_path / f"straight{stage}", step).items():
                for name, tensor in weights.items():
                    assert torch.equal(found[kind][name], tensor), (stage, step, kind, name)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_process_that_is_killed_in_a_save_ends_the_others_and_leaves_no_half_file(stage: int, tmp_path: Path) -> None:
    done = deepspeeds.toy(2, deepspeeds.job(tmp_path, stage, 1, 2, die=True), fails=True)
    assert done.returncode not in (0, None), done.stdout[-4000:]
    assert (tmp_path / "toy.safetensors").is_file(), done.stdout[-4000:]
    assert load_file(tmp_path / "toy.safetensors").keys() == {f"terms.{name}.weight" for name in SHAPES}
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"toy.safetensors", "step1.pt", "step2.pt", "held0.json", "held1.json"}, left


def test_two_machines_are_one_run(tmp_path: Path) -> None:
    jobs = [deepspeeds.job(tmp_path / str(stage), stage, 1, STEPS) for stage in STAGES]
    for done in deepspeeds.on_machines(2, [str(deepspeeds.TOY), json.dumps(jobs)]):
        assert done.returncode == 0, done.stdout[-4000:]
    for stage in STAGES:
        check(tmp_path / str(stage), PLAIN)
