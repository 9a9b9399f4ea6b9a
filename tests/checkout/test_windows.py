"""The processes of Windows: the choice of the interpreter anywhere, the system's calls on Windows itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kohya_ext.checkout import windows
from kohya_ext.checkout.known_locations import ROOT
from kohya_ext.checkout.processes import _on_windows, processes_of, running_guis, running_trainings
from kohya_ext.checkout.windows import Details, Listed
from tests.checkout.pythons import BASE_PYTHON, make_venv

on_windows = pytest.mark.skipif(os.name != "nt", reason="reads the memory of a process by calls that only Windows has")

GUI = "import sys\nprint('up', flush=True)\nsys.stdin.read()\n"


@contextlib.contextmanager
def started(python: Path, script: Path, cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that runs until the block ends."""
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(GUI)
    command = [str(python), os.path.relpath(script, cwd), *arguments]
    with subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "WORKSPACE": "C:\\Bär"}
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline().strip() == b"up"
            yield process
        finally:
            process.stdin.close()


def only(process: subprocess.Popen[bytes], patch: pytest.MonkeyPatch) -> None:
    """Let nothing be seen but `process` and what it has started."""
    rows = [row for row in windows.listed() if process.pid in (row.pid, row.parent)]
    patch.setattr(windows, "listed", lambda: iter(rows))


@on_windows
def test_we_are_listed() -> None:
    assert (os.getpid(), Path(sys.executable).name.lower()) in [
        (row.pid, row.program.lower()) for row in windows.listed()
    ]


@on_windows
def test_what_a_process_was_started_with(tmp_path: Path) -> None:
    folder = tmp_path / "Kohya SS \N{LATIN SMALL LETTER U WITH DIAERESIS}"
    folder.mkdir()
    with started(BASE_PYTHON, folder / "kohya_gui.py", folder, "--x", 'a "b" c\\', "\N{SNOWMAN}") as process:
        found = windows.details(process.pid)
    assert found is not None
    assert found.arguments[1:] == ("kohya_gui.py", "--x", 'a "b" c\\', "\N{SNOWMAN}")
    assert Path(found.folder) == folder
    assert Path(found.image) == BASE_PYTHON
    assert found.environ["WORKSPACE"] == "C:\\Bär"


@on_windows
def test_a_gui_in_a_virtual_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "kohya ss"
    python = make_venv(root / "venv")
    with started(python, root / "kohya_gui.py", root) as process:
        only(process, monkeypatch)
        guis = list(running_guis(processes_of(ROOT)))
        assert guis and {gui.root for gui in guis} == {root}
        assert {gui.python for gui in guis} == {python}
        assert running_trainings(processes_of(ROOT), [root]) == []


@on_windows
def test_a_training_is_one_and_not_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "kohya_ss"
    python = make_venv(root / "venv")
    with started(python, root / "sd-scripts" / "sdxl_train.py", root) as process:
        only(process, monkeypatch)
        assert [training.pid for training in running_trainings(processes_of(ROOT), [root])] == [process.pid]
        assert running_trainings(processes_of(ROOT), [tmp_path / "another"]) == []
        assert len(running_trainings(processes_of(ROOT), [], [python])) == 1


@on_windows
def test_what_may_not_be_read_is_skipped() -> None:
    assert windows.details(4) is None  # the system's own process
    assert windows.details(0xFFFFFFF0) is None


def test_the_interpreter_behind_a_launcher_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tmp_path / "venv" / "Scripts"
    scripts.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    launcher, base, uv = scripts / "python.exe", tmp_path / "base" / "python.exe", tmp_path / "uv.exe"
    words = ("python", "kohya_gui.py")
    images = {8: uv, 12: launcher, 16: base, 20: base}
    parents = {8: 1, 12: 8, 16: 12, 20: 1}
    rows = [Listed(pid, parents[pid], image.name) for pid, image in images.items()]
    monkeypatch.setattr(windows, "listed", lambda: iter([*rows, Listed(24, 1, "explorer.exe")]))
    monkeypatch.setattr(windows, "details", lambda pid: Details(words, str(tmp_path), str(images[pid]), {}))
    found = {process.pid: process.python for process in _on_windows()}
    assert found == {8: None, 12: launcher, 16: launcher, 20: base}


def test_variables_of_a_block() -> None:
    assert windows._variables("=C:=C:\\x\0A=1=2\0B=\0\0rubbish=1") == {"A": "1=2", "B": ""}
    assert windows._variables("") == {}
