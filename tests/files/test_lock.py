from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kohya_ext.errors import ConflictError
from kohya_ext.files.lock import locked
from tests.files.faults import held_elsewhere

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked on Windows")


def test_second_one_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path), pytest.raises(ConflictError, match="another kohya-ext"), locked(tmp_path, 0.1):
        pass
    with locked(tmp_path, 5):
        assert list(tmp_path.iterdir()) == []


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


def test_second_one_waits(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.write(writing, b"x")
            time.sleep(0.5)
        os._exit(0)
    os.read(reading, 1)
    started = time.monotonic()
    with locked(tmp_path, 10):
        waited = time.monotonic() - started
    os.waitpid(child, 0)
    assert 0.2 < waited < 5


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path, 1):
        pass


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConflictError), locked(tmp_path / "absent"):
        pass
