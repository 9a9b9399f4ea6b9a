"""Fused backward on the real script: never more gradients in memory than the largest parameter's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream.rig_bench import MAIN, NEWEST, Bench, remove

pytestmark = pytest.mark.upstream

LAUNCH = str(Path(__file__).with_name("rig_gradients.py"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


def counted(bench: Bench, tree: str, name: str, *flags: str, launch: str = LAUNCH) -> dict[str, int]:
    run = bench.train(tree, "full", name, *flags, "--max_grad_norm=0", launch=launch)
    line = next(line for line in reversed(run.output.splitlines()) if line.startswith('{"live"'))
    remove(run)
    found: dict[str, int] = json.loads(line)
    return found


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_gradients_go_as_they_come(bench: Bench, tree: str) -> None:
    plain = counted(bench, tree, "plain")
    fused = counted(bench, tree, "fused", "--fused_backward_pass")
    print(plain, fused)
    assert fused["parameters"] == plain["parameters"] > 700
    assert fused["largest"] == plain["largest"]
    assert fused["live"] == fused["largest"] < plain["live"] / 3


@pytest.mark.slow
def test_full_size(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole SDXL, random, in bfloat16: two steps."""
    model = os.environ.get("KOHYA_RIG_FULL_SDXL")
    if not model:
        pytest.skip("needs KOHYA_RIG_FULL_SDXL, an SDXL checkpoint of full size, and 24 GB of memory")
    monkeypatch.setenv("RIG_TINY", "")
    fused = counted(bench, MAIN, "full-size", *full_size(model), "--fused_backward_pass", launch=f"{LAUNCH} --unsaved")
    print(fused)
    assert fused["live"] == fused["largest"]


@pytest.mark.slow
def test_half_depth_beside_unfused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the gradients took is what fused backward saves, to a tenth."""
    model = os.environ.get("KOHYA_RIG_HALF_SDXL")
    if not model:
        pytest.skip("needs KOHYA_RIG_HALF_SDXL, an SDXL checkpoint with half of the transformer blocks")
    monkeypatch.setenv("RIG_TINY", "")
    launch = f"{LAUNCH} --half-depth --unsaved"
    plain = counted(bench, MAIN, "half", *full_size(model), launch=launch)
    fused = counted(bench, MAIN, "half-fused", *full_size(model), "--fused_backward_pass", launch=launch)
    print(plain, fused)
    assert fused["live"] == fused["largest"]
    assert plain["anonymous"] - fused["anonymous"] > 0.9 * (plain["live"] - fused["live"])


def full_size(model: str) -> tuple[str, ...]:
    return (
        f"--pretrained_model_name_or_path={model}", "--full_bf16", "--mixed_precision=bf16", "--save_precision=bf16",
        "--gradient_checkpointing", "--max_train_steps=2", "--resolution=128,128",
        "--learning_rate_te1=0", "--learning_rate_te2=0",
    )  # fmt: skip
