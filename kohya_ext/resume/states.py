"""The states in a run's output folder: which are complete, and which was saved last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import FOUND_PROBLEMS, KohyaExtError, UsageError
from kohya_ext.resume.record import FILE, Record, RecordError, has_record, read
from kohya_ext.spec.outputs import SAVING_PREFIX, STATE_SUFFIX


class NothingSavedError(KohyaExtError):
    """There is no state to resume from, and no trace of one: a script may start the run from its beginning."""

    exit_code = FOUND_PROBLEMS


@dataclass(frozen=True)
class SavedState:
    """A complete state."""

    folder: Path
    record: Record

    @property
    def name(self) -> str:
        """The output name of its run; "" where it had none."""
        return str(self.record.settings.get("output_name") or "")

    @property
    def complete(self) -> bool:
        """Whether all steps have been made."""
        return self.record.position.step >= self.record.position.total and self.record.position.over


@dataclass(frozen=True)
class Unusable:
    """A folder that looks like a state, and why it is not taken."""

    folder: Path
    why: str


@dataclass(frozen=True)
class Found:
    """states: the complete ones, the last saved first."""

    states: tuple[SavedState, ...]
    unusable: tuple[Unusable, ...]


def look(run: Path) -> Found:
    """The states in `run`, an output folder or one state.

    Raises UsageError where it is neither, NothingSavedError where it does not exist.

    A process that was killed while it replaced a state by a newer one of the same name may have left both in its
    temporary folder, so these are looked at as well.
    """
    if not run.exists():
        raise NothingSavedError(f"{run} does not exist: there is nothing to resume")
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder; give the output folder of a run, or one of its states")
    candidates = [run] if has_record(run) else [*run.glob(f"*{STATE_SUFFIX}"), *run.glob(_LEFT)]
    states: list[SavedState] = []
    unusable: list[Unusable] = []
    for folder in sorted(path for path in candidates if path.is_dir()):
        one = _state(folder)
        if isinstance(one, SavedState):
            states.append(one)
        elif not folder.parent.name.startswith(SAVING_PREFIX):
            unusable.append(one)
    states.sort(key=lambda state: (state.record.saved_at, state.record.position.step), reverse=True)
    return Found(tuple(states), tuple(unusable))


def _state(folder: Path) -> SavedState | Unusable:
    try:
        return SavedState(folder, read(folder))
    except RecordError as error:
        return Unusable(folder, str(error))


_LEFT = f"{SAVING_PREFIX}*/*{STATE_SUFFIX}"


def last(run: Path, name: str | None = None) -> tuple[SavedState, Found]:
    """The state to resume from, and all that was found. name: the output name, where the folder has several runs.

    Raises NothingSavedError where there is none, UsageError where none is complete or several runs are there.
    """
    found = look(run)
    states = [state for state in found.states if name is None or state.name == name]
    names = sorted({state.name for state in states})
    if len(names) > 1:
        raise UsageError(f"{run} has states of several runs ({', '.join(map(repr, names))}); choose one with --name")
    if not states:
        of_name = "" if name is None else f" of a run with the output name {name!r}"
        reasons = "".join(f"\n{one.folder}: {one.why}" for one in found.unusable)
        text = (
            f"{run} has no complete state{of_name} with a {FILE}; states get one from runs with "
            f"--kohya_ext_exact_resume and --save_state{reasons}"
        )
        raise UsageError(text) if found.states or found.unusable else NothingSavedError(text)
    return states[0], found
