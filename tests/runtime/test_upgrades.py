"""As the GUI starts after an upgrade of Kohya, its presets are fitted to it: one line, and nothing can stop the GUI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core import about
from kohya_ext.runtime import upgrades
from tests.runtime.test_wrapping import python, write

PRESETS = [{"path": "presets/finetune/user_presets/a.json", "kind": "preset"}]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run; each succeeds."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        done = {"files": ["p/a.json", "p/b.json"], "kept": ["presets/finetune/user_presets/mine.json"]}
        return subprocess.CompletedProcess(command, 0, json.dumps(done), "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


OLD, NEW, TRAINING = "0" * 40, "1" * 40, "2" * 40


def checkout(
    root: Path, was: object = "v1", now: str | None = "v2", files: object = PRESETS, commits: object = None
) -> Path:
    """A checkout at the commit `NEW`, its training code at another."""
    (root / about.MANIFEST).parent.mkdir()
    record = {"release": was, "files": files, **({} if commits is None else {"commits": commits})}
    (root / about.MANIFEST).write_text(json.dumps(record))
    if now is not None:
        (root / ".release").write_text(f"{now}\n")
    for folder, commit in ((root, NEW), (root / "sd-scripts", TRAINING)):
        (folder / ".git").mkdir(parents=True)
        (folder / ".git" / "HEAD").write_text(f"{commit}\n")
    return root


def test_one_line_after_an_upgrade(started: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upgrades.refit_presets(checkout(tmp_path))
    said = "kohya_ext: 2 presets fitted to v2 (before: v1); edited by you and not touched: mine\n"
    assert capsys.readouterr() == (said, "")
    assert started == [
        [sys.executable, "-m", "kohya_ext", "presets", "refit", str(tmp_path), "--python", sys.executable, "--json"]
    ]


@pytest.mark.parametrize("commits", [[OLD, TRAINING], [NEW, OLD], [OLD], ["", OLD]], ids="-".join)
def test_a_branch_that_keeps_the_name_of_its_release(
    commits: list[str], started: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrades.refit_presets(checkout(tmp_path, was="v2", commits=commits))
    said = "kohya_ext: 2 presets fitted to v2 (before: another commit); edited by you and not touched: mine\n"
    assert (capsys.readouterr().out, len(started)) == (said, 1)


def test_nothing_is_said_of_a_commit_that_changed_no_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, json.dumps({"files": [], "kept": ["presets/a.json"]}), "")

    monkeypatch.setattr(subprocess, "run", run)
    upgrades.refit_presets(checkout(tmp_path, was="v2", commits=[OLD, OLD]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words",
    [
        {"now": "v1"},
        {"now": "v1", "commits": []},
        {"now": "v1", "commits": [NEW, TRAINING]},
        {"now": "v1", "commits": ["", ""]},
        {"now": None},
        {"now": None, "commits": [OLD, OLD]},
        {"was": ""},
        {"files": []},
        {"files": [{"kind": "patched"}, 1]},
    ],
    ids=str,
)
def test_nothing_is_started_where_nothing_is_to_be_done(
    words: dict[str, Any], started: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrades.refit_presets(checkout(tmp_path, **words))
    upgrades.refit_presets(tmp_path / "nowhere")
    assert (started, capsys.readouterr().out) == ([], "")


def fails(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 4, "", "kohya-ext: error: no space left\non the device\n")


def slow(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    raise subprocess.TimeoutExpired(command, 60)


def vague(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 0, "[]", "")


@pytest.mark.parametrize(("run", "words"), [(fails, "no space left on the device"), (slow, "60 seconds"), (vague, "")])
def test_a_failure_is_one_line_with_the_command(
    run: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", run)
    upgrades.refit_presets(checkout(tmp_path))
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert words in said
    assert f"presets refit {tmp_path}" in said


@pytest.mark.parametrize("record", [b"", b"\xff", b"[1]", b'{"release": "v1"}', b'{"release": "v1", "files": 3}'])
def test_a_record_that_cannot_be_read_stops_nothing(record: bytes, started: Any, tmp_path: Path) -> None:
    checkout(tmp_path)
    (tmp_path / about.MANIFEST).write_bytes(record)
    upgrades.refit_presets(tmp_path)
    assert started == []


def test_the_gui_asks_once_and_before_its_tabs_are_built(tmp_path: Path) -> None:
    start = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
    tab = "    class AdvancedTraining:\n        def __init__(self): ...\n"
    for package in ("library", "kohya_gui"):
        write(tmp_path, {f"{package}/__init__.py": start, f"{package}/class_advanced_training.py": tab})
        code = f"""
            from kohya_ext.runtime import upgrades
            upgrades.refit_presets = print
            import {package}.class_advanced_training
        """
        assert python(tmp_path, code) == str(tmp_path)
