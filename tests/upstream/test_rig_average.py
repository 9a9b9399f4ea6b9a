"""The saved average against raw weights saved at every step, on the real scripts, to fp32 rounding.

A covering set, not the product: every release and every kind of run meets every way in which steps may be made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from tests.upstream import rig_bench as bench_module
from tests.upstream.rig_bench import (
    EMA,
    EVERY_STEP,
    LAUNCH,
    MAIN,
    NEWEST,
    OLD,
    SCHEDULES,
    STEPS,
    TWO_PROCESSES,
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


@pytest.mark.parametrize(
    ("tree", "kind", "schedule"),
    [
        (MAIN, "full", "warmup"),
        (MAIN, "lora", "power"),
        (MAIN, "fine_tune", "debiased"),
        (NEWEST, "full", "constant"),
        (NEWEST, "lora", "exp"),
        (NEWEST, "fine_tune", "warmup"),
        (OLD, "full", "exp"),
        (OLD, "lora", "constant"),
        (OLD, "fine_tune", "power"),
    ],
)
def test_schedules(bench: Bench, tree: str, kind: str, schedule: str) -> None:
    check(bench, tree, kind, schedule, schedule=schedule)


@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "fine_tune"), (NEWEST, "full"), (OLD, "lora")])
def test_accumulation(bench: Bench, tree: str, kind: str) -> None:
    check(bench, tree, kind, "accumulate", "--gradient_accumulation_steps=2", schedule="constant")


@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "lora"), (NEWEST, "full"), (OLD, "fine_tune")])
def test_an_interval_covers_the_same_span(bench: Bench, tree: str, kind: str) -> None:
    run = bench.train(tree, kind, "interval", *EMA, "--ema_schedule=constant", "--ema_update_every=2", *EVERY_STEP)
    raw = run.at_steps(STEPS)
    decay = bench_module.DECAY**2
    exact = average(bench.start(tree, kind), [raw[1], raw[3]], lambda step, of: 1 - decay)
    assert_same_to_rounding(run.tensors("-ema"), exact)
    remove(run)


@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "full"), (NEWEST, "lora"), (OLD, "fine_tune")])
def test_steps_that_the_scaler_skips(bench: Bench, tree: str, kind: str) -> None:
    """Kohya counts them and saves after them; the weights have not moved, and the average must not count them."""
    steps = 8
    flags = (*EMA, *EVERY_STEP, f"--max_train_steps={steps}")
    run = bench.train(tree, kind, "overflow", *flags, launch=f"{LAUNCH} overflows")
    raw = run.at_steps(steps)
    before = [bench.start(tree, kind), *raw]
    skipped = [step for step in range(1, steps + 1) if farthest(before[step - 1], before[step]) < 1e-20]
    assert skipped == [1, 3, 4, 7]
    real = [weights for step, weights in enumerate(raw, 1) if step not in skipped]
    assert_same_to_rounding(run.tensors("-ema"), average(real[0], real, bench_module.debiased))
    assert run.metadata("-ema")["kohya_ext_ema_steps"] == str(len(real))
    remove(run)


def farthest(a: Weights, b: Weights) -> float:
    """The start weights come from a run that has moved zeros by next to nothing, so equality will not do."""
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
@pytest.mark.parametrize("optimizer", ["AdaCoor", "Adafactor"])
def test_fused_backward(bench: Bench, tree: str, optimizer: str) -> None:
    plain = ["scale_parameter=False", "relative_step=False", "warmup_init=False"]
    theirs = ("--optimizer_type=Adafactor", "--optimizer_args", *plain, "--learning_rate=1e-3")
    flags = theirs if optimizer == "Adafactor" else ()
    check(bench, tree, "full", f"fused-{optimizer}", "--fused_backward_pass", *flags, schedule="constant")


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_fused_groups_of_optimizers(bench: Bench, tree: str) -> None:
    check(bench, tree, "full", "groups", "--fused_optimizer_groups=4", schedule="warmup")


@pytest.mark.parametrize("tree", [MAIN, NEWEST, OLD])
def test_norms_that_are_scaled_after_the_step(bench: Bench, tree: str) -> None:
    limit = 1e-3
    scaled = ("--learning_rate=100", f"--scale_weight_norms={limit}")
    raw = check(bench, tree, "lora", "norms", *scaled, schedule="debiased")
    largest = [max(norms(weights)) for weights in raw]
    assert 0.9 * limit < max(largest) < 1.01 * limit, f"nothing was scaled: {largest}"


def norms(weights: Weights) -> list[float]:
    """The norm of what each pair of matrices adds to its weight."""
    found = []
    for key, down in weights.items():
        if key.endswith("lora_down.weight"):
            up = weights[key.replace("lora_down", "lora_up")]
            scale = float(weights[key.replace("lora_down.weight", "alpha")]) / down.shape[0]
            found.append(scale * float((up.flatten(1) @ down.flatten(1)).norm()))
    return found


@pytest.mark.parametrize(
    ("tree", "kind", "port"), [(MAIN, "full", 29611), (NEWEST, "lora", 29612), (OLD, "fine_tune", 29613)]
)
def test_two_processes(bench: Bench, tree: str, kind: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch = f"{TWO_PROCESSES.format(port=port)} {LAUNCH} frozen_alone"
    raw = check(bench, tree, kind, "two", schedule="constant", launch=launch)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    alone = bench.train(tree, kind, "one", *EVERY_STEP)
    assert different(raw[0], alone.tensors("-step00000001")), "the second process has added nothing"
    remove(alone)


@pytest.mark.parametrize("tree", [MAIN, OLD])
def test_weights_in_bfloat16(bench: Bench, tree: str) -> None:
    """`--full_bf16`: a shadow in the weights' own type would stand still; ours is float32, and saved as such."""
    flags = ("--mixed_precision=bf16", "--full_bf16", "--no_half_vae")
    run = bench.train(tree, "full", "bf16", *EMA, *EVERY_STEP, *flags)
    raw = run.at_steps(STEPS)
    exact = average(raw[0], raw, bench_module.debiased)
    ours = run.tensors("-ema")
    # the average stands in bfloat16 parameters while it is saved
    for key, value in exact.items():
        bound = 2.0**-8 * float(value.abs().max())
        assert float((ours[key].double() - value).abs().max()) <= bound, key
    trained: Sequence[str] = different(raw[0], raw[-1])
    moved = [key for key in trained if not torch.equal(ours[key], raw[0][key])]
    assert len(moved) > 0.5 * len(trained)
    remove(run)
