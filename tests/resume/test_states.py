"""The last complete state of a run, among others that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.resume import states
from kohya_ext.spec.outputs import SAVING_PREFIX
from tests.resume.states_made import made, save


def test_the_last_one_saved_is_taken_not_the_largest_step(tmp_path: Path) -> None:
    """A run that was set back to an earlier state goes on from where it is now."""
    save(tmp_path, 9, made(9, saved_at=100))
    newer = save(tmp_path, 4, made(4, saved_at=200))
    state, found = states.last(tmp_path)
    assert state.folder == newer
    assert len(found.states) == 2


def test_what_is_not_whole_is_not_taken_and_named(tmp_path: Path) -> None:
    whole = save(tmp_path, 2)
    cut = save(tmp_path, 3)
    (cut / "optimizer.bin").unlink()
    (tmp_path / "dog-000001-state").mkdir()
    state, found = states.last(tmp_path)
    assert state.folder == whole
    assert [one.folder.name for one in found.unusable] == ["dog-000001-state", cut.name]


def test_a_state_can_be_given_itself(tmp_path: Path) -> None:
    save(tmp_path, 4)
    folder = save(tmp_path, 2)
    assert states.last(folder)[0].folder == folder


def test_one_that_was_about_to_be_moved_into_place_counts_if_whole(tmp_path: Path) -> None:
    save(tmp_path, 2)
    waiting = save(tmp_path / f"{SAVING_PREFIX}abc", 3)
    assert states.last(tmp_path)[0].folder == waiting
    (waiting / "optimizer.bin").unlink()
    state, found = states.last(tmp_path)
    assert state.record.position.step == 2
    assert not found.unusable


def test_several_runs_in_a_folder_need_a_name(tmp_path: Path) -> None:
    save(tmp_path, 2)
    cat = save(tmp_path, 3, name="cat")
    with pytest.raises(UsageError, match="--name"):
        states.last(tmp_path)
    assert states.last(tmp_path, "cat")[0].folder == cat
    with pytest.raises(UsageError, match="'bird'"):
        states.last(tmp_path, "bird")


def test_no_state_is_said_with_the_reasons(tmp_path: Path) -> None:
    for empty in (tmp_path, tmp_path / "not there yet"):
        with pytest.raises(states.NothingSavedError, match=r"no complete state|does not exist") as told:
            states.last(empty)
        assert told.value.exit_code == 1
    cut = save(tmp_path, 3)
    (cut / "optimizer.bin").unlink()
    with pytest.raises(UsageError, match="incomplete"):
        states.last(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        states.last(cut / "kohya_ext_resume.json")
