"""Fused backward on the real scripts: AdaCoor steps in the backward pass to the same bits as in the plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream import rig
from tests.upstream.rig_bench import MAIN, NEWEST, Bench, assert_identical, different, remove
from tests.upstream.test_rig_scripts import SMALL, flags_of

pytestmark = pytest.mark.upstream

FUSED = "--fused_backward_pass"
# upstream clips each tensor by itself in a fused backward pass, and all together in the plain loop
NO_CLIPPING = "--max_grad_norm=0"
MODES = {"16": (), "32": ("state_bits=32",), "8": ("state_bits=8",), "stochastic": ("stochastic_state=True",)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
@pytest.mark.parametrize("mode", MODES)
def test_it_equals_the_plain_loop(bench: Bench, tree: str, mode: str) -> None:
    optimizer = ("--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8", *MODES[mode])
    plain = bench.train(tree, "full", f"plain-{mode}", *optimizer, NO_CLIPPING, "--save_every_n_steps=1")
    fused = bench.train(tree, "full", f"fused-{mode}", *optimizer, NO_CLIPPING, FUSED)
    assert different(plain.tensors(), plain.tensors("-step00000001")), "the run has not trained"
    assert_identical(plain.tensors(), fused.tensors())
    remove(plain)
    remove(fused)


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_groups_of_optimizers_equal_the_plain_loop(bench: Bench, tree: str) -> None:
    plain = bench.train(tree, "full", "plain", NO_CLIPPING, "--save_every_n_steps=1")
    for groups in (1, 5):
        fused = bench.train(tree, "full", f"groups-{groups}", NO_CLIPPING, f"--fused_optimizer_groups={groups}")
        assert different(fused.tensors(), plain.tensors("-step00000001"))
        assert_identical(plain.tensors(), fused.tensors())
        remove(fused)
    remove(plain)


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
@pytest.mark.parametrize("script", ["train_control_net", "sdxl_train_control_net"])
def test_control_nets(bench: Bench, tree: str, script: str, tmp_path: Path) -> None:
    """These patch the optimizer before a state is loaded."""
    flags = (*flags_of(script, tmp_path), "--optimizer_type=AdaCoor", "--learning_rate=1", NO_CLIPPING)
    runs = []
    for name, more in (("plain", ()), ("fused", (FUSED,))):
        run = rig.run_script(
            bench.tree(tree), rig.TREES[tree], f"{tree}-{script}-{name}", f"{script}.py", *flags, *more, launch=SMALL
        )
        assert run.returncode == 0, run.output[-4000:]
        runs.append(run)
    plain, fused = runs
    assert different(plain.tensors(), plain.tensors("-step00000001")), "the run has not trained"
    assert_identical(plain.tensors(), fused.tensors())
    for run in runs:
        remove(run)


def test_a_resumed_fused_run_is_the_uninterrupted_one(bench: Bench, one_image: tuple[str, ...]) -> None:
    """Loading a state replaces the optimizer's groups, which the hooks of some scripts have caught already."""
    flags = (NO_CLIPPING, FUSED, *one_image)
    straight = bench.train(MAIN, "full", "straight", *flags, "--save_every_n_steps=1", "--save_state")
    state = straight.folder / f"{straight.name}-step00000002-state"
    resumed = bench.train(MAIN, "full", "resumed", *flags, "--max_train_steps=2", f"--resume={state}")
    assert different(straight.tensors(), straight.tensors("-step00000002"))
    assert_identical(straight.tensors(), resumed.tensors())
    remove(straight)
    remove(resumed)


@pytest.mark.parametrize("fused", [FUSED, "--fused_optimizer_groups=4"])
@pytest.mark.parametrize("other", ["--mixed_precision=fp16", "--gradient_accumulation_steps=2"])
def test_what_it_cannot_do_is_refused_at_once(bench: Bench, fused: str, other: str) -> None:
    run = bench.train(NEWEST, "full", "refused", fused, other, fails=True)
    assert run.returncode == 2
    assert f"\nkohya_ext: {fused.partition('=')[0]} " in run.output
    assert "Traceback" not in run.output
