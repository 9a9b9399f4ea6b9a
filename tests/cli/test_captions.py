from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import CONFLICT, DONE, FOUND_PROBLEMS, RECOVERED, WRONG_USAGE
from kohya_ext.dataset import captions, history
from tests.cli.conftest import Ran
from tests.dataset.folders import everything, folder_of, text_of
from tests.files.faults import boundaries, killed_at

Run = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(
        tmp_path / "images", {"a dog (1).png": None, "b.jpg": None, "b.txt": "mine", "deeper/c.webp": None}
    )


def test_the_guides_way(folder: Path, run: Run) -> None:
    done = run("captions", folder)
    assert done.code == DONE and "a dog (1).txt: a dog" in done.text and "b.txt: exists" in done.text
    assert text_of(folder) == {"a dog (1).txt": "a dog\n", "b.txt": "mine"}
    assert run("captions", "undo", folder).code == DONE
    assert text_of(folder) == {"b.txt": "mine"}


def test_a_dry_run_changes_nothing(folder: Path, run: Run) -> None:
    before = everything(folder)
    done = run("captions", folder, "--recursive", "--overwrite", "--dry-run")
    assert done.code == DONE and "would be: 3 captions written" in done.text
    assert everything(folder) == before and not (folder / ".kohya_ext").exists()


def test_json(folder: Path, run: Run) -> None:
    document = run("captions", folder, "--json").document
    assert document["written"] == [{"path": "a dog (1).txt", "before": None, "after": "a dog"}]
    assert document["kept"] == [{"path": "b.txt", "why": "exists"}]
    assert run("captions", "undo", folder, "--json").document["paths"] == ["a dog (1).txt"]


def test_every_verb(folder: Path, run: Run) -> None:
    run("captions", folder, "--overwrite")
    assert run("captions", "prefix", folder, "ewpp, ").code == DONE
    assert run("captions", "replace", folder, "dog", "cat", "--words").code == DONE
    assert text_of(folder) == {"a dog (1).txt": "ewpp, a cat\n", "b.txt": "ewpp, b\n"}
    assert run("captions", "to-names", folder).code == DONE
    assert (folder / "ewpp, a cat.png").exists()
    assert run("captions", "check", folder).code == DONE
    assert run("captions", "check", folder, "--recursive").code == FOUND_PROBLEMS


def test_a_folder_called_like_a_verb(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "undo", {"a.png": None})
    monkeypatch.chdir(tmp_path)
    assert run("captions", "./undo").code == DONE
    assert (tmp_path / "undo/a.txt").exists()


def test_after_a_kill_the_next_command_tidies_up(folder: Path, run: Run) -> None:
    assert killed_at(15, lambda: history.apply(folder, captions.from_names(folder, overwrite=True)))
    done = run("captions", folder)
    assert done.code == RECOVERED and "rolled back" in done.text
    assert text_of(folder)["a dog (1).txt"] == "a dog\n"


def test_errors(folder: Path, run: Run) -> None:
    assert run("captions", folder / "absent").code == WRONG_USAGE
    assert run("captions", "undo", folder).code == WRONG_USAGE
    assert run("captions", "replace", folder, "(", "x", "--regex").code == WRONG_USAGE
    run("captions", folder)
    (folder / "a dog (1).txt").write_text("edited")
    assert run("captions", "undo", folder).code == CONFLICT
    assert run("captions").code == WRONG_USAGE


def test_undo_after_a_kill_takes_back_no_more_than_the_command_that_was_killed(tmp_path: Path, run: Run) -> None:
    """Whether the killed command comes out done or not, its forerunner stays, if there is any trace of it at all."""

    def prepared(name: str) -> Path:
        folder = folder_of(tmp_path / name, {"a dog.png": None, "b.jpg": None})
        history.apply(folder, captions.from_names(folder))
        return folder

    def prefix(folder: Path) -> None:
        history.apply(folder, captions.prefixed(folder, "ewpp, "))

    whole = prepared("whole")
    first = everything(whole)
    codes = []
    for number in range(len(boundaries(lambda: prefix(whole)))):
        folder = prepared(str(number))
        traces = {path.name for path in (folder / ".kohya_ext").iterdir()}
        assert killed_at(number, lambda folder=folder: prefix(folder))  # type: ignore[misc]
        traced = {path.name for path in (folder / ".kohya_ext").iterdir()} != traces
        codes.append(run("captions", "undo", folder).code)
        assert everything(folder) == first or not traced
    assert RECOVERED in codes and DONE in codes


def test_undo_again_after_a_killed_undo_goes_no_further(tmp_path: Path, run: Run) -> None:
    def prepared(name: str) -> Path:
        folder = folder_of(tmp_path / name, {"a dog.png": None})
        history.apply(folder, captions.from_names(folder))
        history.apply(folder, captions.prefixed(folder, "ewpp, "))
        return folder

    whole = prepared("whole")
    both = everything(whole)
    count = len(boundaries(lambda: history.undo(whole)))
    once, records = everything(whole), {path.name for path in (whole / ".kohya_ext").iterdir()}
    for number in range(count):
        folder = prepared(str(number))
        assert killed_at(number, lambda folder=folder: history.undo(folder))  # type: ignore[misc]
        finished = {path.name for path in (folder / ".kohya_ext").iterdir()} == records
        code = run("captions", "undo", folder).code
        if not finished:  # else nothing tells that it was killed, after its last write
            assert everything(folder) == once or (everything(folder) == both and code == RECOVERED)


def test_a_command_that_fails_after_a_recovery_says_both(run: Run, tmp_path: Path) -> None:
    """Files have changed then, so the exit code is not one that promises the contrary."""
    folder = folder_of(tmp_path / "images", {"a.png": None, "a.txt": "a dog"})
    assert killed_at(12, lambda: run("captions", "prefix", folder, "x "))
    before = everything(folder)
    assert run("captions", "replace", folder, "a", "b", "--extension", "./x").code == WRONG_USAGE
    assert everything(folder) == before
    done = run("captions", "replace", folder, "(", "b", "--regex")
    assert done.code == RECOVERED
    assert "rolled back" in done.errors and "not a regular expression" in done.errors
    assert not (folder / ".kohya_ext").exists()


def test_checking_a_folder_of_folders_says_so(tmp_path: Path, run: Run) -> None:
    folder = folder_of(tmp_path / "data", {"10_girl/a.png": None, "10_girl/a.txt": "a girl"})
    done = run("captions", "check", folder, "--extension", ".caption")
    assert done.code == WRONG_USAGE and "--recursive" in done.errors
    assert run("captions", "check", folder, "--extension", ".caption", "--recursive").code == FOUND_PROBLEMS
    assert run("captions", "check", folder, "--recursive").code == DONE
