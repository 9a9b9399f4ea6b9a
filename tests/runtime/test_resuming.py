"""Runs that are interrupted and resumed exactly: the same weights, batches, losses and numbers as without interruption.

A small script has the loops of sd-scripts' trainings; it reads its data with three random number generators.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.errors import STOPPED_BY_SIGNAL, WRONG_USAGE
from kohya_ext.resume.record import read
from kohya_ext.resume.states import last, look
from kohya_ext.spec.outputs import SAVING_PREFIX
from tests.miniatures.run import Run
from tests.runtime.test_script_miniatures import Bench

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="these runs end themselves by POSIX signals")

SCRIPT = "train_in_epochs"
EXACT = "--kohya_ext_exact_resume"
USUAL = ("--max_train_steps=10", "--gradient_accumulation_steps=2", "--learning_rate=0.01", "--lr_warmup_steps=3",
         "--save_every_n_epochs=1", "--save_state")  # fmt: skip
LOADERS = {
    "alone": ("--max_data_loader_n_workers=0",),
    "workers": ("--max_data_loader_n_workers=2",),
    "persistent": ("--max_data_loader_n_workers=2", "--persistent_data_loader_workers"),
}
KILLED = -signal.SIGKILL


class ResumeBench(Bench):
    """Runs of the small script, and their continuation in the same folder."""

    def train(self, *flags: str, era: str = "v26", out: Path | None = None, code: int | None = 0) -> Run:
        self.count += 1
        words = ["--seed=3", "--save_every_n_steps=1", "--output_name=dog", "--optimizer_type=AdamW", *USUAL, *flags]
        run = self.launcher.run(self.tree(era) / f"{SCRIPT}.py", words, out or self.folder / f"run {self.count}")
        assert code is None or run.code == code, run.log
        return run

    def again(self, run: Run, *flags: str, **how: Any) -> Run:
        """Continue from the last complete state of `run`."""
        state, _ = last(run.out)
        return self.train(*flags, f"--resume={state.folder}", out=run.out, **how)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResumeBench]:
    made = ResumeBench(tmp_path_factory.mktemp("resumed"))
    yield made
    made.launcher.close()


def lines(run: Run) -> list[dict[str, Any]]:
    """The lines of the script's log; of those that a resumed run repeats, the last."""
    found = {}
    for text in (run.out / "losses.jsonl").read_text().splitlines():
        line = json.loads(text)
        found[line.get("epoch", 99), line.get("batch", 99)] = line
    return [found[key] for key in sorted(found)]


def kill(where: str, number: int) -> tuple[str, ...]:
    return ("--end_by=SIGKILL", f"--end_at={where}:{number}")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_run_that_is_killed_five_times_is_the_uninterrupted_one(bench: ResumeBench, loader: str) -> None:
    ema = ("--enable_ema", "--ema_decay=0.9")
    flags = (EXACT, *LOADERS[loader], *ema)
    straight = bench.train(*flags)
    run = bench.train(*flags, *kill("save", 2), code=KILLED)
    for where in (kill("save", 2), kill("epoch", 1), kill("step", 6), kill("save", 1)):
        run = bench.again(run, *flags, *where, code=KILLED)
    run = bench.again(run, *flags)
    # of the step at which a run was killed the script had not logged the loss
    assert lines(run)[-1] == lines(straight)[-1]
    assert_same_weights(run, straight)
    assert_same_log(run, straight)


def assert_same_weights(resumed: Run, straight: Run) -> None:
    assert resumed.models() == straight.models()
    for name in straight.models():
        ours, theirs = resumed.tensors(name), straight.tensors(name)
        assert all(torch.equal(ours[key], value) for key, value in theirs.items()), name


def assert_same_log(resumed: Run, straight: Run) -> None:
    """Whatever the resumed runs have logged, the uninterrupted one has too, and as often as it should."""
    expected = {(line.get("epoch"), line.get("batch")): line for line in lines(straight)}
    got = lines(resumed)
    assert all(expected[line.get("epoch"), line.get("batch")] == line for line in got)
    assert len(got) >= len(expected) - 5


@pytest.mark.parametrize("era", ["v06", "v22", "v24"])
def test_older_eras_resume_exactly(bench: ResumeBench, era: str) -> None:
    straight = bench.train(EXACT, era=era)
    run = bench.train(EXACT, *kill("step", 2), era=era, code=KILLED)
    run = bench.again(run, EXACT, *kill("epoch", 1), era=era, code=KILLED)
    run = bench.again(run, EXACT, era=era)
    assert_same_weights(run, straight)
    assert_same_log(run, straight)


def test_every_state_of_a_run_continues_exactly(bench: ResumeBench) -> None:
    straight = bench.train(EXACT, "--max_train_steps=9")
    states = sorted(straight.out.glob("dog-*-state"))
    assert len(states) == 11
    for state in states:
        resumed = bench.train(EXACT, "--max_train_steps=9", f"--resume={state}")
        for name in resumed.models():
            ours, theirs = resumed.tensors(name), straight.tensors(name)
            assert all(torch.equal(ours[key], value) for key, value in theirs.items()), (state, name)
        assert_same_log_from(resumed, straight)


def assert_same_log_from(resumed: Run, straight: Run) -> None:
    expected = lines(straight)
    got = lines(resumed)
    assert got == expected[len(expected) - len(got) :]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_a_state_after_the_step_and_stops(bench: ResumeBench, name: str) -> None:
    flags = ("--kohya_ext_save_on_signal", "--save_every_n_steps=100", "--save_every_n_epochs=100", *LOADERS["workers"])
    straight = bench.train(*flags)
    asked = (f"--end_by={name}", "--end_at=step:6")
    run = bench.train(*flags, *asked, code=STOPPED_BY_SIGNAL)
    assert name in run.log and "kohya-ext resume" in run.log
    assert [path.name for path in run.out.glob("*-state")] == ["dog-step00000006-state"]
    run = bench.again(run, *flags)
    assert_same_weights(run, straight)
    assert lines(run) == lines(straight)


def test_a_signal_between_two_epochs_saves_one_too(bench: ResumeBench) -> None:
    flags = ("--kohya_ext_save_on_signal", "--save_every_n_steps=100", "--save_every_n_epochs=100")
    straight = bench.train(*flags)
    run = bench.train(*flags, "--end_by=SIGTERM", "--end_at=epoch:1", code=STOPPED_BY_SIGNAL)
    state, _ = last(run.out)
    assert state.record.position.over
    run = bench.again(run, *flags)
    assert_same_weights(run, straight)
    assert lines(run) == lines(straight)


def test_a_kill_within_a_save_leaves_the_state_before(bench: ResumeBench) -> None:
    run = bench.train(EXACT, *kill("save", 4), code=KILLED)
    assert not (run.out / "dog-step00000004-state").exists()
    state, found = last(run.out)
    # the third save is that of the step, the fourth would have been the fourth step's or the epoch's
    assert state.record.position.step == 3
    assert len(found.states) == 3


def test_a_state_left_between_two_renames_gets_its_name_when_it_is_resumed_from(bench: ResumeBench) -> None:
    """Killed when the state before had been moved away and the new one was not yet in its place."""
    run = bench.train(EXACT, *kill("step", 3), code=KILLED)
    waiting = run.out / f"{SAVING_PREFIX}left" / "dog-step00000003-state"
    waiting.parent.mkdir()
    (run.out / waiting.name).rename(waiting)
    assert last(run.out)[0].folder == waiting
    again = bench.again(run, EXACT, *kill("step", 4), code=KILLED)
    assert (again.out / waiting.name / "kohya_ext_resume.json").is_file()
    assert not waiting.parent.exists()


def test_a_kill_while_a_state_is_saved_again_leaves_the_one_of_that_name(bench: ResumeBench) -> None:
    run = bench.train(EXACT, *kill("step", 3), code=KILLED)
    before = {path: path.stat().st_mtime_ns for path in (run.out / "dog-step00000003-state").rglob("*")}
    state = run.out / "dog-step00000002-state"
    again = bench.train(EXACT, f"--resume={state}", *kill("save", 1), out=run.out, code=KILLED)
    assert before == {path: path.stat().st_mtime_ns for path in (again.out / "dog-step00000003-state").rglob("*")}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_complete_run_trains_nothing_and_saves_its_model(bench: ResumeBench, loader: str) -> None:
    """And a state from which a larger total would train on as from the first one."""
    flags = (EXACT, *LOADERS[loader])
    straight = bench.train(*flags)
    resumed = bench.train(*flags, f"--resume={straight.out}/dog-state")
    assert "nothing is left to train" in resumed.log
    ends = [read(run.out / "dog-state") for run in (straight, resumed)]
    assert ends[0].random == ends[1].random and ends[0].position == ends[1].position
    assert resumed.models() == ["dog"]
    ours, theirs = resumed.tensors("dog"), straight.tensors("dog")
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_larger_total_trains_on_from_the_end(bench: ResumeBench) -> None:
    """Within an epoch that the smaller total had cut."""
    constant = ("--lr_warmup_steps=0", EXACT)
    straight = bench.train(*constant)
    short = bench.train(*constant, "--max_train_steps=6")
    longer = bench.train(*constant, f"--resume={short.out}/dog-state")
    assert "the total was 6 steps" in longer.log
    ours, theirs = longer.tensors("dog"), straight.tensors("dog")
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_without_the_flags_nothing_changes(bench: ResumeBench) -> None:
    plain = bench.train()
    assert not list(plain.out.rglob("kohya_ext_resume.json"))
    assert "resume" not in plain.log
    exact = bench.train(EXACT)
    assert_same_weights(exact, plain)
    assert lines(exact) == lines(plain)


def test_a_state_without_a_record_resumes_as_upstream_does(bench: ResumeBench) -> None:
    plain = bench.train()
    state = plain.out / "dog-step00000002-state"
    upstream = bench.train(f"--resume={state}", "--max_train_steps=3")
    ours = bench.train(f"--resume={state}", "--max_train_steps=3", EXACT)
    assert "cannot be known" in ours.log
    assert_same_weights(ours, upstream)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--seed=4",), "seed: 3, now 4"),
        (("--gradient_accumulation_steps=1",), "accumulation: 2, now 1"),
        (("--max_data_loader_n_workers=1",), "workers: 0, now 1"),
    ],
)
def test_other_data_are_refused(bench: ResumeBench, flags: tuple[str, ...], word: str) -> None:
    run = bench.train(EXACT, *kill("step", 2), code=KILLED)
    again = bench.again(run, EXACT, *flags, code=WRONG_USAGE)
    assert word in again.log


def test_changed_settings_are_told(bench: ResumeBench) -> None:
    run = bench.train(EXACT, *kill("step", 2), code=KILLED)
    again = bench.again(run, EXACT, "--learning_rate=0.02")
    assert "learning_rate 0.01 -> 0.02" in again.log


def test_a_damaged_state_is_refused(bench: ResumeBench) -> None:
    run = bench.train(EXACT, *kill("step", 2), code=KILLED)
    state, _ = last(run.out)
    (state.folder / "optimizer.bin").unlink()
    refused = bench.train(EXACT, f"--resume={state.folder}", code=WRONG_USAGE)
    assert "is incomplete: optimizer.bin" in refused.log


def test_what_cannot_work_is_refused_before_training(bench: ResumeBench) -> None:
    assert "remove --initial_step" in bench.train(EXACT, "--initial_step=3", code=WRONG_USAGE).log
    refused = bench.launcher.run(
        bench.tree("v26") / f"{SCRIPT}.py", ["--max_train_steps=2", EXACT], bench.folder / "without a seed"
    )
    assert refused.code == WRONG_USAGE and "--seed 42" in refused.log


def test_a_script_with_other_loops_is_refused(bench: ResumeBench) -> None:
    refused = bench.launcher.run(
        bench.tree("v26") / "train_leco.py", ["--max_train_steps=2", "--seed=1", EXACT], bench.folder / "leco"
    )
    assert refused.code == WRONG_USAGE and "training loop of train_leco.py" in refused.log


def test_a_loader_that_the_layer_does_not_see_is_refused(bench: ResumeBench) -> None:
    """One that is not accelerate's: nothing would put the run back to its place."""
    script = bench.tree("v26") / f"{SCRIPT}.py"
    other = script.with_name("train_another_loader.py")
    other.write_text(
        script.read_text().replace(
            "    ender = Ender(args)\n", "    ender, train_dataloader = Ender(args), [*train_dataloader]\n"
        )
    )
    run = bench.train(EXACT, *kill("step", 2), code=KILLED)
    words = ["--seed=3", "--optimizer_type=AdamW", *USUAL, EXACT, f"--resume={last(run.out)[0].folder}"]
    refused = bench.launcher.run(other, words, bench.folder / "another loader")
    assert refused.code == WRONG_USAGE and "does not know this loader of batches (list)" in refused.log


def test_states_that_upstream_prunes_stay_whole(bench: ResumeBench) -> None:
    flags = (EXACT, "--save_last_n_steps=2")
    straight = bench.train(*flags)
    run = bench.train(*flags, *kill("save", 5), code=KILLED)
    _, found = last(run.out)
    assert not found.unusable
    run = bench.again(run, *flags)
    assert_same_weights(run, straight)
    assert sorted(path.name for path in run.out.glob("*-state")) == sorted(
        path.name for path in straight.out.glob("*-state")
    )


def interrupted_at_random(bench: ResumeBench, times: int, seed: int, loader: str) -> tuple[int, int]:
    """Signals at random moments; each run that was stopped is continued, each that ends is the uninterrupted one.

    Returns the number of states that were saved by a signal, and of runs that were completed.
    """
    flags = ("--kohya_ext_save_on_signal", "--max_train_steps=25", "--save_every_n_steps=4", *LOADERS[loader])
    straight = bench.train(*flags)
    chance = random.Random(seed)
    run, stopped, completed = None, 0, 0
    for _ in range(times):
        name = chance.choice(("SIGTERM", "SIGTERM", "SIGINT", "SIGKILL"))
        asked = (f"--end_by={name}", f"--end_at=time:{chance.random() * 0.4:.3f}")
        resumable = run is not None and bool(look(run.out).states)
        run = (
            bench.again(run, *flags, *asked, code=None)
            if run is not None and resumable
            else bench.train(*flags, *asked, code=None)
        )
        assert run.code in (0, STOPPED_BY_SIGNAL, -getattr(signal, name)), run.log
        found = look(run.out)
        assert not found.unusable
        if run.code == STOPPED_BY_SIGNAL:
            stopped += 1
            assert str(found.states[0].folder) in run.log
        elif run.code == 0:
            assert_same_weights(run, straight)
            assert_same_log(run, straight)
            run, completed = None, completed + 1
    return stopped, completed


@pytest.mark.parametrize("loader", ["alone", "workers"])
def test_signals_at_random_moments(bench: ResumeBench, loader: str) -> None:
    interrupted_at_random(bench, 8, 1, loader)


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_many_signals_at_random_moments(bench: ResumeBench, loader: str) -> None:
    stopped, completed = interrupted_at_random(bench, 100, 2, loader)
    assert stopped > 20 and completed > 2
