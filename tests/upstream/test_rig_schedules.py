"""Every schedule, on every release of the rig, in every way that steps are made: the product, not a sample.

What is saved from the EMA after each step is compared with the float64 average, by definition, of the raw weights that
the same run saved after each step, to fp32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upstream import rig
from tests.upstream.ema_results import recorded
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

ALL = [(tree, kind) for tree in (MAIN, NEWEST, OLD) for kind in ("full", "lora")]
SCRIPTS = {"full": "sdxl_train", "lora": "sdxl_train_network", "fine_tune": "fine_tune"}
VARIANTS = {name: flags for name, (_, flags) in SCHEDULES.items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


def check(bench: Bench, tree: str, kind: str, name: str, *flags: str, what: str = "nothing", launch: str = "",
          steps: int = STEPS, real: int | None = None) -> list[Weights]:  # fmt: skip
    """Train with each schedule; returns the raw weights of every step of the last run.

    real: how many of the steps move the weights, where some are skipped; the average after the last one is compared.
    """
    flags = (*EMA, *EVERY_STEP, f"--max_train_steps={steps}", *flags)
    runs = bench.train_all(tree, kind, name, VARIANTS, *flags, what=what, launch=launch)
    start = bench.start(tree, kind)
    raw: list[Weights] = []
    for schedule, run in runs.items():
        raw = run.at_steps(steps)
        assert different(raw[0], raw[-1]), "the run has not trained"
        check_run(run, raw, start, schedule, real)
    remove(run)
    return raw


def check_run(run: rig.Run, raw: list[Weights], start: Weights, schedule: str, real: int | None) -> None:
    weight = SCHEDULES[schedule][0]
    first = raw[0] if weight(1, STEPS) == 1 else start
    if real is None:
        for step, ours in enumerate(run.at_steps(len(raw), "-ema"), 1):
            assert_same_to_rounding(ours, average(first, raw[:step], weight, len(raw)))
        assert_identical(run.tensors("-ema"), run.tensors(f"-ema-step{len(raw):08d}"))
    else:
        before = [start, *raw]
        moved = [after for before, after in zip(before, raw, strict=False) if farthest(before, after) > 1e-20]
        assert len(moved) == real
        first = moved[0] if weight(1, STEPS) == 1 else start
        assert_same_to_rounding(run.tensors("-ema"), average(first, moved, weight, len(raw)))
    assert_identical(run.tensors(), raw[-1])
    metadata = run.metadata("-ema")
    assert metadata["kohya_ext_ema_schedule"] == schedule
    assert metadata["kohya_ext_ema_steps"] == str(real or len(raw))


def farthest(a: Weights, b: Weights) -> float:
    """The start weights come from a run that has moved zeros by next to nothing, so equality will not do."""
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


@pytest.mark.parametrize(("tree", "kind"), [*ALL, (MAIN, "fine_tune"), (NEWEST, "fine_tune"), (OLD, "fine_tune")])
def test_plain_steps(bench: Bench, tree: str, kind: str) -> None:
    with recorded(SCRIPTS[kind], tree):
        check(bench, tree, kind, "plain")


@pytest.mark.parametrize(("tree", "kind"), ALL)
def test_accumulation(bench: Bench, tree: str, kind: str) -> None:
    check(bench, tree, kind, "accumulated", "--gradient_accumulation_steps=2")


@pytest.mark.parametrize(("tree", "kind"), ALL)
def test_steps_that_the_scaler_skips(bench: Bench, tree: str, kind: str) -> None:
    """Kohya counts them and saves after them; the weights have not moved, and the average must not count them."""
    check(bench, tree, kind, "overflows", what="overflows", steps=8, real=4)


@pytest.mark.parametrize(("place", "tree", "kind"), [(place, *both) for place, both in enumerate(ALL)])
def test_two_processes(bench: Bench, place: int, tree: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = bench.start(tree, kind)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch = TWO_PROCESSES.format(port=29611 + place)
    raw = check(bench, tree, kind, "two", what="frozen_alone", launch=launch)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    alone = bench.train(tree, kind, "one", *EVERY_STEP)
    assert different(start, raw[0])
    assert different(raw[0], alone.tensors("-step00000001")), "the second process has added nothing"
    remove(alone)


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
@pytest.mark.parametrize("optimizer", ["AdaCoor", "Adafactor"])
def test_fused_backward(bench: Bench, tree: str, optimizer: str) -> None:
    plain = ["scale_parameter=False", "relative_step=False", "warmup_init=False"]
    theirs = ("--optimizer_type=Adafactor", "--optimizer_args", *plain, "--learning_rate=1e-3")
    flags = theirs if optimizer == "Adafactor" else ()
    check(bench, tree, "full", f"fused-{optimizer}", "--fused_backward_pass", *flags)


@pytest.mark.parametrize("tree", [MAIN, NEWEST, OLD])
def test_norms_that_are_scaled_after_the_step(bench: Bench, tree: str) -> None:
    limit = 1e-3
    raw = check(bench, tree, "lora", "norms", "--learning_rate=100", f"--scale_weight_norms={limit}")
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


@pytest.mark.parametrize(("tree", "kind", "flags"), [
    (MAIN, "full", ()), (NEWEST, "full", ("--fused_backward_pass",)), (OLD, "lora", ()),
])  # fmt: skip
def test_compiled_passes(bench: Bench, tree: str, kind: str, flags: tuple[str, ...]) -> None:
    """As for models of real size; and the run trains as it does without an EMA."""
    check(bench, tree, kind, "compiled", *flags, what="compiled")
    # in processes of their own: a later run in one process meets random states of the earlier ones
    without = bench.train(tree, kind, "without", *EVERY_STEP, *flags)
    alone = bench.train(tree, kind, "alone", *EMA, *EVERY_STEP, *flags, launch=f"{LAUNCH} compiled")
    for before, after in zip(without.at_steps(STEPS), alone.at_steps(STEPS), strict=True):
        assert_identical(before, after)
    for run in (without, alone):
        remove(run)
