"""Intervals, groups of optimizers and 16-bit weights on the real scripts; `test_rig_schedules` has the plain cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from tests.upstream import rig_bench as bench_module
from tests.upstream.rig_bench import (
    EMA,
    EVERY_STEP,
    MAIN,
    NEWEST,
    OLD,
    SCHEDULES,
    STEPS,
    Bench,
    Weights,
    assert_identical,
    assert_same_to_rounding,
    average,
    different,
    remove,
)

pytestmark = pytest.mark.upstream


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


def check(
    bench: Bench, tree: str, kind: str, name: str, *flags: str, schedule: str = "debiased", launch: str = ""
) -> list[Weights]:
    """Run, compare the average after every step with its definition, and return the raw weights of every step."""
    weight, choice = SCHEDULES[schedule]
    run = bench.train(tree, kind, name, *EMA, *choice, *EVERY_STEP, *flags, launch=launch)
    raw = run.at_steps(STEPS)
    start = raw[0] if weight(1, STEPS) == 1 else bench.start(tree, kind)
    assert different(raw[0], raw[-1]), "the run has not trained"
    for step, ours in enumerate(run.at_steps(STEPS, "-ema"), 1):
        assert_same_to_rounding(ours, average(start, raw[:step], weight))
    assert_identical(run.tensors(), raw[-1])
    assert_identical(run.tensors("-ema"), run.tensors(f"-ema-step{STEPS:08d}"))
    remove(run)
    return raw


@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "lora"), (NEWEST, "full"), (OLD, "fine_tune")])
def test_an_interval_covers_the_same_span(bench: Bench, tree: str, kind: str) -> None:
    run = bench.train(tree, kind, "interval", *EMA, "--ema_schedule=constant", "--ema_update_every=2", *EVERY_STEP)
    raw = run.at_steps(STEPS)
    decay = bench_module.DECAY**2
    exact = average(bench.start(tree, kind), [raw[1], raw[3]], lambda step, of: 1 - decay)
    assert_same_to_rounding(run.tensors("-ema"), exact)
    remove(run)


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_fused_groups_of_optimizers(bench: Bench, tree: str) -> None:
    check(bench, tree, "full", "groups", "--fused_optimizer_groups=4", schedule="warmup")


@pytest.mark.parametrize("tree", [MAIN, OLD])
def test_weights_in_bfloat16(bench: Bench, tree: str) -> None:
    """`--full_bf16`: a shadow in the weights' own type would stand still; ours is float32, and saved as such."""
    flags = ("--mixed_precision=bf16", "--full_bf16", "--no_half_vae")
    run = bench.train(tree, "full", "bf16", *EMA, *EVERY_STEP, *flags)
    raw = run.at_steps(STEPS)
    exact = average(raw[0], raw, bench_module.debiased)
    ours = run.tensors("-ema")
    # the average is in bfloat16 parameters while it is saved
    for key, value in exact.items():
        bound = 2.0**-8 * float(value.abs().max())
        assert float((ours[key].double() - value).abs().max()) <= bound, key
    trained: Sequence[str] = different(raw[0], raw[-1])
    moved = [key for key in trained if not torch.equal(ours[key], raw[0][key])]
    assert len(moved) > 0.5 * len(trained)
    remove(run)
