"""Signals that ask for a state, and what they do where there is none to save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from kohya_ext.core.errors import STOPPED_BY_SIGNAL
from kohya_ext.runtime.interruption import Interruption
from kohya_ext.runtime.resuming import ExactResume
from kohya_ext.runtime.run import run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="these tests send POSIX signals to themselves")

LEAVES = """
import signal
from kohya_ext.runtime.interruption import Interruption
if {ignored}:
    signal.signal(signal.{name}, signal.SIG_IGN)
asked = Interruption()
asked.listen()
asked.end_as_ever()  # none has come
signal.raise_signal(signal.{name})
print("asked")
asked.end_as_ever()
print("still there")
"""


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interruption]:
    monkeypatch.setattr(run, "undoing", [])
    made = Interruption()
    made.listen()
    yield made
    while run.undoing:
        run.undoing.pop()()


def resume(interruption: Interruption | None, *, resumes: bool) -> tuple[ExactResume, list[str]]:
    made, ended = ExactResume.__new__(ExactResume), []
    made.interruption, made._resumes = interruption, resumes
    made.args = SimpleNamespace(resume="out/dog-step00000004-state")  # type: ignore[assignment]
    made.accelerator = SimpleNamespace(end_training=lambda: ended.append("training"))
    return made, ended


@pytest.mark.parametrize("ignored", [False, True], ids=["", "in the background"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_process_ends_by_the_signal(name: str, ignored: bool) -> None:
    """Also where nobody listened for it: a script that starts a run in the background has it ignore SIGINT."""
    code = LEAVES.format(name=name, ignored=ignored)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -getattr(signal, name), done.stderr
    assert done.stdout == "asked\n"


def test_a_resumed_run_stops_with_the_code_that_asks_for_a_resume(
    interruption: Interruption, capsys: pytest.CaptureFixture[str]
) -> None:
    one, ended = resume(interruption, resumes=True)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        one.leave_untrained()
    assert stopped.value.code == STOPPED_BY_SIGNAL and ended == ["training"]
    assert "is still out/dog-step00000004-state" in capsys.readouterr().out


def test_a_new_run_ends_as_ever(interruption: Interruption) -> None:
    one, ended = resume(interruption, resumes=False)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        one.leave_untrained()
    assert not ended


def test_without_the_flag_nothing_ends() -> None:
    resume(None, resumes=True)[0].leave_untrained()
