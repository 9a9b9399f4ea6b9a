from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.files import lock
from kohya_ext.files.lock import locked
from tests.files import holder
from tests.files.faults import held_elsewhere

REPOSITORY = Path(__file__).parents[2]


@contextlib.contextmanager
def held_by_a_process(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `folder` until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-m", holder.__name__, str(folder), *options],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline().strip() == "held"
            yield process
        finally:
            process.stdin.close()


def test_second_one_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path), pytest.raises(ConflictError, match="another kohya-ext"), locked(tmp_path, 0.1):
        pass
    with locked(tmp_path, 5):
        assert list(tmp_path.iterdir()) == []


def test_two_processes(tmp_path: Path) -> None:
    with held_by_a_process(tmp_path) as process:
        with pytest.raises(ConflictError, match="another kohya-ext"), locked(tmp_path, 0.1):
            pass
        assert process.stdin is not None
        process.stdin.close()  # from now on it is a matter of waiting
        with locked(tmp_path, 60):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    with held_by_a_process(tmp_path) as process:
        process.kill()
        process.wait()
        with locked(tmp_path, 10):
            pass


def test_a_child_of_a_killed_holder_still_holds_it(tmp_path: Path) -> None:
    with held_by_a_process(tmp_path, "--child") as process:
        process.kill()
        process.wait()
        with pytest.raises(ConflictError, match="another kohya-ext"), locked(tmp_path, 0.2):
            pass
        assert process.stdin is not None
        process.stdin.close()  # ends the child
        with locked(tmp_path, 60):
            pass


def test_who_holds_it_gets_it_again(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path / ".", 0):
            pass
        assert _refused(tmp_path)  # the inner one has not let go of it
    assert not _refused(tmp_path)


def _refused(folder: Path) -> bool:
    try:
        with held_elsewhere(folder):
            return False
    except BlockingIOError:
        return True


@pytest.mark.skipif(os.name != "nt", reason="names differ in case elsewhere")
def test_however_the_folder_is_spelled(tmp_path: Path) -> None:
    folder = tmp_path / "Kohya SS \N{LATIN SMALL LETTER U WITH DIAERESIS}"
    folder.mkdir()
    with held_by_a_process(folder), pytest.raises(ConflictError), locked(Path(str(folder).upper()), 0.1):
        pass


def test_an_error_within_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(FileNotFoundError), locked(tmp_path):
        (tmp_path / "absent").read_bytes()
    assert not lock._held


@pytest.mark.parametrize("name", ["absent", "file"])
def test_no_such_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError), locked(tmp_path / name):
        pass
