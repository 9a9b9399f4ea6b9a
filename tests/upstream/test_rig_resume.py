"""Resume and samples on the real scripts: the run goes on bit for bit, and looking at the EMA changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream.rig import Run
from tests.upstream.rig_bench import (
    EMA,
    EVERY_STEP,
    MAIN,
    NEWEST,
    OLD,
    Bench,
    assert_identical,
    different,
    remove,
)

pytestmark = pytest.mark.upstream

STATE = "-step00000002-state"
ONE_LEFT = "--max_train_steps=2"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "full"), (NEWEST, "lora"), (OLD, "full"), (OLD, "lora")])
def test_a_resumed_run_is_the_uninterrupted_one(bench: Bench, tree: str, kind: str, one_image: tuple[str, ...]) -> None:
    straight = bench.train(tree, kind, "straight", *EMA, *EVERY_STEP, *one_image, "--save_state")
    state = straight.folder / f"{straight.name}{STATE}"
    assert (state / "kohya_ext_ema.safetensors").is_file()
    # newer releases count the steps of the state, older ones begin at 0
    left = () if tree != OLD and kind == "lora" else (ONE_LEFT,)
    resumed = bench.train(tree, kind, "resumed", *EMA, *one_image, *left, f"--resume={state}")
    assert different(straight.tensors("-ema"), straight.tensors("-ema-step00000002"))
    assert_identical(straight.tensors(), resumed.tensors())
    assert_identical(straight.tensors("-ema"), resumed.tensors("-ema"))
    remove(straight)
    remove(resumed)


@pytest.mark.parametrize(("tree", "kind"), [(NEWEST, "full"), (OLD, "lora")])
def test_states_and_the_flag_may_disagree(bench: Bench, tree: str, kind: str, one_image: tuple[str, ...]) -> None:
    """A state without an average begins a new one, and says so; one with an average resumes without the flag."""
    saving = (*EVERY_STEP, *one_image, "--save_state")
    without = bench.train(tree, kind, "without", *saving)
    left = () if tree != OLD and kind == "lora" else (ONE_LEFT,)
    begun = bench.train(
        tree, kind, "begun", *EMA, *one_image, *left, f"--resume={without.folder}/{without.name}{STATE}"
    )
    assert "contains no EMA" in begun.output
    assert_identical(begun.tensors(), without.tensors())
    assert different(begun.tensors("-ema"), begun.tensors())
    remove(begun)
    having = bench.train(tree, kind, "having", *EMA, *saving)
    plain = bench.train(tree, kind, "plain", *one_image, *left, f"--resume={having.folder}/{having.name}{STATE}")
    assert_identical(plain.tensors(), without.tensors())
    for run in (without, having, plain):
        remove(run)


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_files_from_before_a_resume_are_rotated(bench: Bench, tree: str, one_image: tuple[str, ...]) -> None:
    """A LoRA's epochs go on counting there (its steps do not); with one image a step is an epoch."""
    flags = (*EMA, "--save_every_n_epochs=1", "--save_last_n_epochs=1", *one_image, "--save_state")
    begun = bench.train(tree, "lora", "rotated", *flags, ONE_LEFT)
    assert counted(begun) == {f"{begun.name}{ema}-000001.safetensors" for ema in ("", "-ema")}
    state = f"--resume={begun.folder}/{begun.name}-000001-state"
    resumed = bench.train(tree, "lora", "rotated", *flags, state, keep=True)
    assert counted(resumed) == {f"{begun.name}{ema}-000003.safetensors" for ema in ("", "-ema")}
    remove(resumed)


EXACT = (
    "--kohya_ext_exact_resume", "--save_state", "--save_every_n_epochs=1", "--gradient_accumulation_steps=2",
    "--max_train_steps=7", "--shuffle_caption", "--caption_dropout_rate=0.2",
)  # fmt: skip


def test_exact_resume_counts_on_where_upstream_begins_again(bench: Bench) -> None:
    flags = (*EVERY_STEP, *EXACT)
    straight = bench.train(MAIN, "full", "counts", *flags)
    state = straight.folder / f"{straight.name}-step00000004-state"
    resumed = bench.train(MAIN, "full", "counted", *flags, f"--resume={state}")
    assert (
        "resumed exactly at step 4 in epoch 2 after batch 2: --max_train_steps is the total, 3 of 7" in resumed.output
    )
    assert suffixes(resumed) == {"", *(f"-step{step:08d}" for step in (5, 6, 7)), "-000002"}
    assert_identical(straight.tensors(), resumed.tensors())
    remove(straight)
    remove(resumed)


def counted(run: Run) -> set[str]:
    return {path.name for path in run.folder.glob("*-0[0-9]*.safetensors")}


def suffixes(run: Run) -> set[str]:
    """What follows the run's name in the names of its files."""
    return {path.stem.removeprefix(run.name) for path in run.folder.glob("*.safetensors")}


@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "lora"), (NEWEST, "full"), (OLD, "full")])
def test_samples_of_both_lie_beside_each_other_and_change_nothing(bench: Bench, tree: str, kind: str) -> None:
    prompts = Path(os.environ["KOHYA_RIG"]) / "prompts.txt"
    sampling = ("--sample_every_n_steps=2", f"--sample_prompts={prompts}", "--no_half_vae")
    fast = ("--learning_rate=300",) if kind == "lora" else ()  # else no pixel of the first steps changes
    plain = bench.train(tree, kind, "no-samples", *EMA, *EVERY_STEP, *fast)
    raw = bench.train(tree, kind, "raw-samples", *EMA, *EVERY_STEP, *fast, *sampling)
    both = bench.train(tree, kind, "both-samples", *EMA, *EVERY_STEP, *fast, *sampling, "--ema_sample=both")
    for suffix in ("", "-ema", "-step00000003", "-ema-step00000003"):
        assert_identical(raw.tensors(suffix), both.tensors(suffix))
        assert_identical(plain.tensors(suffix), both.tensors(suffix))
    images = {path.name: path.read_bytes() for path in (both.folder / "sample").glob("*.png")}
    of_raw = {path.name: path.read_bytes() for path in (raw.folder / "sample").glob("*.png")}
    averages = {name for name in images if name.startswith(f"{both.name}-ema_")}
    assert len(averages) == len(of_raw) == len(images) - len(averages) == 2, sorted(images)
    beside = [images[name] for name in sorted(set(images) - averages)]
    assert beside == [of_raw[name] for name in sorted(of_raw)], "the raw images are not those of a run without EMA's"
    # at a real step's distance the two differ
    assert images[sorted(averages)[-1]] != beside[-1]
    for run in (plain, raw, both):
        remove(run)
