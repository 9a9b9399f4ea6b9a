"""SIGTERM at random moments of the real scripts: each time a complete state, or none before the first step.

Every run is stopped at a random moment and resumed, until it comes to its end, which must be that of the uninterrupted
run. The runs of a script are forked from one that has its models and data ready (`rig_moments.py`); one state of each
is resumed by a process of its own as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kohya_ext.core.errors import STOPPED_BY_SIGNAL
from kohya_ext.resume.record import FILE
from kohya_ext.resume.states import SavedState, last, look
from kohya_ext.spec.outputs import SAVING_PREFIX, STATE_SUFFIX
from kohya_ext.validation import records
from tests.upstream import rig
from tests.upstream.rig_bench import EVERY_STEP, MAIN, NEWEST, OLD, remove
from tests.upstream.rig_chains import (
    CELLS,
    FLUX,
    ON_SIGNAL,
    Chains,
    Job,
    assert_same_states,
    digests,
    of_matrix,
)
from tests.upstream.rig_moments import Ended, Waiting, waiting

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

STATES = {MAIN: 28, NEWEST: 6, OLD: 8}  # that signals save in runs of each script: 202
MOST_STOPS = 50  # of a run
START = 0.35  # the share of a run before its first step
TERMINATED = -signal.SIGTERM
WORKERS = {"sdxl_train": 0, "sdxl_train_network": 2, "train_network": 0, "fine_tune": 2, FLUX: 0}


def what_happens(script: str, held: Path) -> tuple[str, ...]:
    """What else a signal may come into: states after every step, validations, samples."""
    prompts = Path(os.environ["KOHYA_RIG"]) / "prompts.txt"
    validated = (f"--kohya_ext_validate={held}", "--kohya_ext_validation_timesteps=1")
    return {
        "sdxl_train": (*validated, "--save_best"),
        "sdxl_train_network": (*EVERY_STEP, *validated, "--kohya_ext_validate_every=2"),
        "train_network": (f"--sample_prompts={prompts}", "--sample_every_n_steps=2"),
        "fine_tune": EVERY_STEP,
        FLUX: EVERY_STEP,
    }[script]


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chains]:
    made = Chains(tmp_path_factory.mktemp("signals"))
    yield made
    made.close()


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """An image to validate on."""
    folder = tmp_path / "held"
    folder.mkdir()
    for suffix in (".png", ".txt"):
        shutil.copy(rig.work() / "assets" / "data" / "1_rig" / f"img0{suffix}", folder)
    return folder


@pytest.mark.parametrize(("tree", "script"), CELLS)
def test_signals_at_random_moments(chains: Chains, tree: str, script: str, tmp_path: Path, held: Path) -> None:
    job = of_matrix(tree, script, WORKERS[script])
    flags = (*what_happens(script, held), f"--max_train_steps={2 * job.epoch + 1}", ON_SIGNAL)
    moments = random.Random(f"{tree} {script}")
    tally = Tally()
    patient = dataclasses.replace(job, whats="waiting")
    with waiting(lambda: chains.run(patient, "waits", *flags), tmp_path) as process:
        cases = Cases(process, tmp_path, moments, tally)
        while tally.states < STATES[tree]:
            cases.interrupted()
        _, state = cases.stopped_once()
    resumed = chains.run(job, "alone", *flags, after=state)
    assert resumed.returncode == 0, resumed.output[-4000:]
    assert_same_states(cases.straight, resumed)
    compared = digests(resumed)
    assert {"", "-ema"} <= compared.keys() and compared.items() <= digests(cases.straight).items()
    remove(resumed)
    report(job, tally)


@dataclass
class Tally:
    """What the signals to a script's runs have led to, and at which (epoch, batch) the states were."""

    states: int = 0
    before: int = 0
    after: int = 0
    ends: int = 0
    seconds: float = 0.0
    places: set[tuple[int, int]] = field(default_factory=set)


@dataclass
class Cases:
    """Runs of one script with the same settings, each in a folder of its own."""

    process: Waiting
    folder: Path
    moments: random.Random
    tally: Tally
    _made: int = 0

    def __post_init__(self) -> None:
        """Begin with the run that nobody interrupts."""
        self.straight = self._new()
        ended = self._go_on(self.straight)
        assert ended.code == 0, log(self.straight)
        self._whole, self._digests = ended.seconds, digests(self.straight)

    def interrupted(self) -> None:
        """A run that is stopped again and again, until one comes to its end."""
        run, state = self._new(), None
        for _ in range(MOST_STOPS):
            place = None if state is None else state.record.position
            part = START + (1 - START) * (1.0 if place is None else 1 - place.step / place.total)
            before = contents(run.folder)
            ended = self._go_on(run, state, signal_after=self.moments.uniform(0, 1.05 * part) * self._whole)
            if ended.code == TERMINATED and not finished(run):  # there was no step to save
                assert contents(run.folder) == before, log(run)
                self.tally.before += 1
            elif ended.code == STOPPED_BY_SIGNAL:
                state = self._saved(run, state)
                self.tally.states += 1
            else:
                assert ended.code in (0, TERMINATED), log(run)
                self.tally.after += ended.signalled
                self._whole = ended.seconds / part  # machines are more or less busy
                break
        if validated(run) != validated(self.straight):  # the signal came after the last step: it is still to be made
            ended = self._go_on(run, last(run.folder)[0])
            assert ended.code == 0, log(run)
        self.tally.ends += 1
        self._assert_same_end(run)
        remove(run)

    def _assert_same_end(self, run: rig.Run) -> None:
        assert digests(run) == self._digests, log(run)
        assert_same_states(self.straight, run)
        assert validated(run) == validated(self.straight), log(run)
        assert not list(run.folder.glob(f"{SAVING_PREFIX}*")) and not look(run.folder).unusable

    def _saved(self, run: rig.Run, before: SavedState | None) -> SavedState:
        """The state of a run that has just been stopped: a complete one of the last step, and nothing half done.

        It is that of before where the signal came into the validation that the run still owed.
        """
        state, found = last(run.folder)
        place = state.record.position
        assert not found.unusable and not list(run.folder.glob(f"{SAVING_PREFIX}*")), log(run)
        assert state.folder.name.endswith(f"-step{place.step:08d}{STATE_SUFFIX}"), log(run)
        assert progress(state) > (progress(before) if before is not None else (0, False)) or state == before, log(run)
        self.tally.places.add((place.epoch, place.batches))
        return state

    def stopped_once(self) -> tuple[rig.Run, SavedState]:
        """A run in the middle of which a signal has come."""
        run = self._new()
        while (ended := self._go_on(run, signal_after=self._whole / 2)).code != STOPPED_BY_SIGNAL:
            assert ended.code in (0, TERMINATED), log(run)
            remove(run)
        return run, self._saved(run, None)

    def _new(self) -> rig.Run:
        self._made += 1
        return rig.Run("run", self.folder / f"case{self._made}", "", 0)

    def _go_on(self, run: rig.Run, after: SavedState | None = None, signal_after: float | None = None) -> Ended:
        run.folder.mkdir(exist_ok=True)
        order = {"output_dir": str(run.folder), "output_name": run.name, "log": f"{run.folder}.log"}
        if after is not None:
            order["resume"] = str(after.folder)
        ended = self.process.go_on(signal_after=signal_after, **order)
        self.tally.seconds += ended.seconds
        return ended


def progress(state: SavedState) -> tuple[int, bool]:
    """The optimizer steps, and whether the epoch is over: a signal may come right behind it."""
    return state.record.position.step, state.record.position.over


def log(run: rig.Run) -> str:
    return Path(f"{run.folder}.log").read_text(encoding="utf-8", errors="replace")[-4000:]


def contents(folder: Path) -> dict[str, int]:
    """Every file there -> when it was written last."""
    return (
        {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}
    )


def finished(run: rig.Run) -> bool:
    return (run.folder / f"{run.name}{STATE_SUFFIX}" / FILE).is_file()


def validated(run: rig.Run) -> list[tuple[int, str, float]]:
    path = run.folder / f"{run.name}{records.VALIDATIONS}"
    return [(row.step, row.weights, row.loss) for row in records.validations(path)] if path.is_file() else []


def report(job: Job, tally: Tally) -> None:
    if file := os.environ.get("KOHYA_EXT_REPORT"):
        found = {**dataclasses.asdict(tally), "places": len(tally.places)}
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"tree": job.tree, "script": job.script, "job": job.label, **found}) + "\n")
