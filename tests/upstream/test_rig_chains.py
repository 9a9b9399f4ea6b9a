"""The real scripts, killed five times and resumed exactly, end as the run that nobody has interrupted.

Each chain ends within a step, within the save of a state, behind an epoch, within the save of a file, and by a signal
that saves a state. Three epochs of six images in an order of their own: upstream's resume would train others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kohya_ext.core.errors import STOPPED_BY_SIGNAL
from kohya_ext.resume.states import SavedState, last
from tests.upstream import rig
from tests.upstream.rig_bench import EVERY_STEP, MAIN, NEWEST, OLD, TWO_PROCESSES, remove
from tests.upstream.rig_chains import (
    CELLS,
    EXACT,
    IMAGES,
    ON_SIGNAL,
    SHUFFLED,
    SMALL,
    Chains,
    Job,
    adacoor,
    assert_same_states,
    digests,
    logged,
    of_matrix,
)

pytestmark = pytest.mark.upstream

KILLED = 256 - 9


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chains]:
    made = Chains(tmp_path_factory.mktemp("chains"))
    yield made
    made.close()


@pytest.mark.parametrize(("tree", "script"), CELLS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_five_times_is_the_uninterrupted_one(
    chains: Chains, tree: str, script: str, workers: int, tmp_path: Path
) -> None:
    check(chains, of_matrix(tree, script, workers), tmp_path)


FUSED = ("--fused_backward_pass", "--max_grad_norm=0")
NETWORKS = ("sd3_train_network", "lumina_train_network", "anima_train_network")


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_a_fused_backward_pass(chains: Chains, tree: str, tmp_path: Path) -> None:
    flags = (*SHUFFLED, *SMALL, *FUSED, *adacoor("state_bits=8"))
    check(chains, Job(tree, "sdxl_train", "fused", flags, accumulation=1), tmp_path)


@pytest.mark.parametrize("tree", [MAIN, OLD])
def test_a_scaled_loss_that_overflows(chains: Chains, tree: str, tmp_path: Path) -> None:
    """Steps are skipped before and after a resume, and the scale is that of the state."""
    flags = (*SHUFFLED, *SMALL, *adacoor("stochastic_state=True"))
    check(chains, Job(tree, "sdxl_train", "scaler", flags, whats="overflows+killed"), tmp_path)


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_swapped_blocks(chains: Chains, tree: str, tmp_path: Path) -> None:
    flags = (f"--pretrained_model_name_or_path={deeper_flux(tmp_path)}", *SHUFFLED, *SMALL, *FUSED, *adacoor(),
             "--blocks_to_swap=2")  # fmt: skip
    check(chains, Job(tree, "flux_train", "swap", flags, accumulation=1, whats="swapping+killed"), tmp_path)


@pytest.mark.parametrize("script", NETWORKS)
def test_networks_of_newer_families(chains: Chains, script: str, tmp_path: Path) -> None:
    flags = (*SHUFFLED, *SMALL, *adacoor("state_bits=8"))
    check(chains, Job(MAIN, script, "family", flags), tmp_path)


def test_two_processes_are_refused(chains: Chains) -> None:
    run = chains.bench.train(MAIN, "full", "two-exact", EXACT, launch=TWO_PROCESSES.format(port=29547), fails=True)
    assert run.returncode != 0 and "--kohya_ext_exact_resume works with one process only" in run.output


def deeper_flux(folder: Path) -> Path:
    """The rig's model with twice its blocks: the tiny one has too few to swap any."""
    model = load_file(rig.work() / "assets" / "families" / "tiny_flux.safetensors")
    blocks = {name: value for name, value in model.items() if name.startswith(("double_blocks.", "single_blocks."))}
    for name, value in blocks.items():
        kind, number, rest = name.split(".", 2)
        model[f"{kind}.{int(number) + 2}.{rest}"] = value.clone()
    save_file(model, folder / "deeper.safetensors")
    return folder / "deeper.safetensors"


def ends_of(job: Job) -> Iterator[tuple[str, int, bool]]:
    """Where each run of a chain ends -> the step of its last state, and whether that is behind an epoch."""
    every, epoch = job.accumulation, job.epoch
    saved = "-ema-step" if "workers2" in job.label else f"{job.label}-step"
    yield f"SIGKILL backward {2 * every}", 1, False
    yield "SIGKILL state 2", 2, False
    yield f"SIGKILL backward {IMAGES - 2 * every + 1}", epoch, True
    yield f"SIGKILL file {saved}{epoch + 2:08d}", epoch + 1, False
    yield f"SIGTERM backward {every}", epoch + 2, False
    yield "", 2 * epoch + 1, True


def check(chains: Chains, job: Job, folder: Path) -> None:
    flags = (*EVERY_STEP, f"--max_train_steps={2 * job.epoch + 1}", ON_SIGNAL)
    straight = chains.run(job, "straight", *flags, f"--logging_dir={folder}/straight")
    assert straight.returncode == 0, straight.output[-4000:]
    state: SavedState | None = None
    expected, seen = logged(folder / "straight"), set()
    for number, (end, step, over) in enumerate(ends_of(job)):
        logs = folder / f"chained{number}"
        run = chains.run(job, "chained", *flags, f"--logging_dir={logs}", after=state, end=end)
        codes = {"SIGKILL": KILLED, "SIGTERM": STOPPED_BY_SIGNAL, "": 0}
        assert run.returncode % 256 == codes[end.partition(" ")[0]], run.output[-4000:]
        state, found = last(run.folder)
        assert not found.unusable
        assert (state.record.position.step, state.record.position.over) == (step, over), end
        assert logged(logs) <= expected, f"run {number} has logged other values"
        seen |= logged(logs)
    assert seen == expected, "some values were never logged"
    compared = digests(straight)
    assert digests(run) == compared
    assert_same_states(straight, run)
    report(job, files=len(compared), logged=len(expected))
    remove(straight)
    remove(run)


def report(job: Job, **figures: int) -> None:
    if file := os.environ.get("KOHYA_EXT_REPORT"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"tree": job.tree, "script": job.script, "job": job.label, **figures}) + "\n")
