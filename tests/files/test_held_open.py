"""Files that another program has open: Windows then refuses to rename or remove them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.files import folder as folders
from kohya_ext.files.atomic import TEMPORARY_SUFFIX, write_atomic
from kohya_ext.files.folder import opened
from kohya_ext.files.journal import Change, read_state
from kohya_ext.files.transaction import Transaction

SHARING_VIOLATION = 32
CALLS = ["replace", "unlink", "rmdir"]

on_windows = pytest.mark.skipif(os.name != "nt", reason="only Windows refuses to replace an open file")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Calls by path, as on Windows; the pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(folders, "_BY_DESCRIPTOR", False)
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def refusing(monkeypatch: pytest.MonkeyPatch, call: str, times: int, code: int = SHARING_VIOLATION) -> None:
    """Let os.`call` fail `times` times as Windows does."""
    real: Callable[..., None] = getattr(os, call)
    left = iter(range(times))

    def refuse(*arguments: object, **options: object) -> None:
        if next(left, None) is not None:
            error = PermissionError(13, "in use")
            error.winerror = code  # type: ignore[attr-defined]
            raise error
        real(*arguments, **options)

    monkeypatch.setattr(os, call, refuse)


def act(root: Path, call: str) -> None:
    (root / "file").write_bytes(b"")
    (root / "empty").mkdir()
    with opened(root) as folder:
        if call == "replace":
            folder.replace("file", folder, "other")
        elif call == "unlink":
            folder.unlink("file")
        else:
            folder.rmdir("empty")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [5, 32, 33])
def test_it_is_tried_again(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    refusing(monkeypatch, call, 4, code)
    act(tmp_path, call)
    assert len(waits) == 4
    assert not (tmp_path / ("empty" if call == "rmdir" else "file")).exists()


@pytest.mark.parametrize("call", CALLS)
def test_but_not_for_ever(tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    refusing(monkeypatch, call, 1000)
    with pytest.raises(PermissionError):
        act(tmp_path, call)
    assert 1 < sum(waits) < 10


def test_other_reasons_are_not_waited_for(tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "unlink", 1, 112)  # a full disk
    with pytest.raises(PermissionError):
        act(tmp_path, "unlink")
    assert waits == []


def test_a_transaction_is_refused_whole_and_says_what_to_close(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").write_bytes(b"old")
    real = os.replace

    def refuse(source: str, target: str) -> None:
        if Path(target).name == "b":
            error = PermissionError(13, "in use", source, SHARING_VIOLATION, target)
            error.winerror = SHARING_VIOLATION  # type: ignore[attr-defined]
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConflictError, match=r"open in another program.*close.*Nothing was changed"):
        _change(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


@on_windows
def test_a_file_that_is_really_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").write_bytes(b"old")
    with (tmp_path / "b").open("rb"), pytest.raises(ConflictError, match="open in another program"):
        _change(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}
    _change(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}


@on_windows
def test_a_file_that_is_open_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    file = path.open("rb")
    timer = threading.Timer(0.3, file.close)
    timer.start()
    write_atomic(path, b"new")
    timer.join()
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@on_windows
def test_what_a_killed_writer_left_is_removed_at_once(tmp_path: Path, waits: list[float]) -> None:
    """Not while we have it open ourselves, as it is to be locked elsewhere; and nobody waits for a living writer."""
    left, living = (tmp_path / f".x.{digits * 8}{TEMPORARY_SUFFIX}" for digits in ("01", "23"))
    left.write_bytes(b"half")
    living.write_bytes(b"half")
    with living.open("rb+"):
        write_atomic(tmp_path / "x", b"new")
    assert {entry.name for entry in tmp_path.iterdir()} == {"x", living.name}
    assert waits == []


def _change(root: Path) -> None:
    steps = []
    for name in ("a", "b"):
        before = read_state(root / name)
        assert before is not None
        steps.append(Change(name, before, type(before)(b"new", before.mode, before.owner)))
    Transaction(root.resolve()).run("install", steps)
