"""The real scripts with `--deepspeed --zero_stage N` on two processes: raw weights, EMA, states, a resumed run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.upstream import deepspeeds, rig
from tests.upstream.rig_bench import (
    ADACOOR,
    COMMON,
    DECAY,
    EMA,
    EVERY_STEP,
    KINDS,
    MAIN,
    STEPS,
    Bench,
    assert_identical,
    assert_same_to_rounding,
    average,
    debiased,
    different,
    remove,
)

pytestmark = pytest.mark.upstream


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


def train(bench: Bench, kind: str, name: str, *flags: str, ranks: int = 2, keep: bool = False) -> rig.Run:
    """One run on the patched tree with DeepSpeed, by the environment that has it."""
    environment = os.path.relpath(deepspeeds.python().parents[1], rig.work() / "venv")
    before = dict(os.environ)
    os.environ.update(deepspeeds.variables())
    os.environ.pop("ACCELERATE_USE_CPU", None)  # accelerate ignores DeepSpeed with it
    train_sh, usual = KINDS[kind]
    # with ZeRO 3 a CLIP of transformers asks for the shape of a weight that is not there
    less = {"--train_text_encoder"} if "--zero_stage=3" in flags else set()
    try:
        words = (*COMMON, *(flag for flag in usual if flag not in less), *ADACOOR, "--deepspeed", *EMA, *flags)
        launch = " ".join(deepspeeds.launcher(ranks))
        run = rig.train(bench.tree(MAIN), environment, train_sh, f"deepspeed-{name}", *words, launch=launch, keep=keep)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert run.returncode == 0, run.output[-4000:]
    return run


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_ema_is_the_average_of_the_raw_weights(bench: Bench, kind: str, stage: int) -> None:
    run = train(bench, kind, f"{kind}{stage}", f"--zero_stage={stage}", *EVERY_STEP)
    raw = run.at_steps(STEPS)
    assert different(raw[0], raw[-1]), "the run has not trained"
    assert all(tensor.numel() for tensor in raw[-1].values())
    for step, ours in enumerate(run.at_steps(STEPS, "-ema"), 1):
        assert_same_to_rounding(ours, average(raw[0], raw[:step], debiased))
    assert_identical(run.tensors(), raw[-1])
    assert_identical(run.tensors("-ema"), run.tensors(f"-ema-step{STEPS:08d}"))
    remove(run)


@pytest.mark.parametrize(("stage", "before", "after"), [(1, 2, 2), (2, 2, 1), (3, 1, 2)])
def test_a_run_goes_on_from_a_state(bench: Bench, stage: int, before: int, after: int) -> None:
    flags = (f"--zero_stage={stage}", *EVERY_STEP)
    first = train(
        bench, "full", "first", *flags, "--save_state", "--save_state_on_train_end", "--max_train_steps=2", ranks=before
    )
    assert (first.folder / f"{first.name}-state").is_dir()
    state: Path = first.folder / f"{first.name}-step00000001-state"
    run = train(bench, "full", "goes-on", *flags, f"--resume={state}", "--max_train_steps=1", ranks=after)
    ema, raw = first.tensors("-ema-step00000001"), run.tensors()
    weight = (1 - DECAY) / (1 - DECAY**2)
    expected = {name: ema[name].double() + weight * (raw[name].double() - ema[name].double()) for name in ema}
    for name, ours in run.tensors("-ema").items():
        torch.testing.assert_close(ours.double(), expected[name], rtol=1e-6, atol=1e-7)
    # one step from the state's weights, not from the start model: AdaCoor moves an element by at most eps ** .5
    moved = [(raw[name] - first.tensors("-step00000001")[name]).abs().max() for name in raw if raw[name].numel()]
    assert 0 < max(moved) <= 1.01e-4
    remove(first)
    remove(run)
