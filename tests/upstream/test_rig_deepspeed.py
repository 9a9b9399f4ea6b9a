"""The real scripts with `--deepspeed --zero_stage N` on two processes: raw weights, EMA, states, a resumed run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    with surroundings():
        run = launched(bench, kind, name, *flags, launch=" ".join(deepspeeds.launcher(ranks)), keep=keep)
    assert run.returncode == 0, run.output[-4000:]
    return run


def launched(bench: Bench, kind: str, name: str, *flags: str, launch: str, keep: bool = False) -> rig.Run:
    """The same by any launcher, in the surroundings that are there."""
    environment = os.path.relpath(deepspeeds.python().parents[1], rig.work() / "venv")
    train_sh, usual = KINDS[kind]
    # with ZeRO 3 a CLIP of transformers asks for the shape of a weight that is not there
    less = {"--train_text_encoder"} if "--zero_stage=3" in flags else set()
    words = (*COMMON, *(flag for flag in usual if flag not in less), *ADACOOR, "--deepspeed", *EMA, *flags)
    return rig.train(bench.tree(MAIN), environment, train_sh, f"deepspeed-{name}", *words, launch=launch, keep=keep)


@contextmanager
def surroundings() -> Iterator[None]:
    """The variables of a run with DeepSpeed."""
    before = dict(os.environ)
    os.environ.update(deepspeeds.variables())
    os.environ.pop("ACCELERATE_USE_CPU", None)  # accelerate ignores DeepSpeed with it
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_ema_is_the_average_of_the_raw_weights(bench: Bench, kind: str, stage: int) -> None:
    check(train(bench, kind, f"{kind}{stage}", f"--zero_stage={stage}", *EVERY_STEP))


def check(run: rig.Run) -> None:
    """What it has saved, raw and from the EMA, after each step."""
    raw = run.at_steps(STEPS)
    assert different(raw[0], raw[-1]), "the run has not trained"
    assert all(tensor.numel() for tensor in raw[-1].values())
    for step, ours in enumerate(run.at_steps(STEPS, "-ema"), 1):
        assert_same_to_rounding(ours, average(raw[0], raw[:step], debiased))
    assert_identical(run.tensors(), raw[-1])
    assert_identical(run.tensors("-ema"), run.tensors(f"-ema-step{STEPS:08d}"))
    remove(run)


def test_accelerate_launches_it_on_one_machine(bench: Bench) -> None:
    with surroundings():
        run = launched(bench, "full", "accelerate", "--zero_stage=2", *EVERY_STEP, launch=on_machine(0, 1))
    assert run.returncode == 0, run.output[-4000:]
    check(run)


def test_accelerate_launches_it_on_two_machines(bench: Bench) -> None:
    """Both are this one, with a process each: the commands of docs/how-to/several-cards.md. The first one saves."""
    bench.tree(MAIN)
    port = deepspeeds.port()

    def machine(rank: int) -> rig.Run:
        launch = on_machine(rank, 2, port)
        return launched(bench, "full", f"machine{rank}", "--zero_stage=2", *EVERY_STEP, launch=launch)

    with surroundings(), ThreadPoolExecutor(2) as both:
        runs = list(both.map(machine, range(2)))
    assert [run.returncode for run in runs] == [0, 0], runs[0].output[-2000:] + runs[1].output[-2000:]
    assert not list(runs[1].folder.glob("*.safetensors"))
    check(runs[0])


def on_machine(rank: int, machines: int, port: int | None = None) -> str:
    """What stands before the script's name in the how-to, for two processes in all and a CPU."""
    place = f"--num_machines {machines} --machine_rank {rank} --main_process_ip 127.0.0.1"
    return (
        f"-m accelerate.commands.launch --multi_gpu --num_processes 2 {place} "
        f"--main_process_port {port or deepspeeds.port()} --mixed_precision no"
    )


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
