"""AdaCoor through --save_state and --resume on the real scripts: every bit goes on, whatever it rounds by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upstream.rig_bench import EVERY_STEP, MAIN, NEWEST, OLD, Bench, assert_identical, different, remove

pytestmark = pytest.mark.upstream

MODES = {
    "16": (),
    "stochastic": ("stochastic_state=True",),
    "8": ("state_bits=8",),
    "32": ("state_bits=32",),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "full"), (NEWEST, "lora"), (OLD, "full")])
def test_a_resumed_run_is_the_uninterrupted_one(
    bench: Bench, tree: str, kind: str, mode: str, one_image: tuple[str, ...]
) -> None:
    optimizer = ("--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8", *MODES[mode])
    straight = bench.train(tree, kind, "straight", *optimizer, *EVERY_STEP, *one_image, "--save_state")
    state = straight.folder / f"{straight.name}-step00000002-state"
    # full fine-tunes begin to count at 0 again, newer LoRA runs count the steps of the state
    left = () if kind == "lora" else ("--max_train_steps=2",)
    resumed = bench.train(tree, kind, "resumed", *optimizer, *one_image, *left, f"--resume={state}")
    assert different(straight.tensors(), straight.tensors("-step00000002")), "nothing happened after the state"
    assert_identical(straight.tensors(), resumed.tensors())
    remove(straight)
    remove(resumed)


def test_bfloat16_weights_are_rounded_alike_after_a_resume(bench: Bench, one_image: tuple[str, ...]) -> None:
    """full_bf16: the weights themselves are rounded stochastically."""
    flags = ("--full_bf16", "--mixed_precision=bf16", "--save_precision=bf16", *one_image)
    straight = bench.train(MAIN, "full", "straight16", *flags, *EVERY_STEP, "--save_state")
    state = straight.folder / f"{straight.name}-step00000002-state"
    resumed = bench.train(MAIN, "full", "resumed16", *flags, "--max_train_steps=2", f"--resume={state}")
    assert different(straight.tensors(), straight.tensors("-step00000002"))
    assert_identical(straight.tensors(), resumed.tensors())
    remove(straight)
    remove(resumed)
