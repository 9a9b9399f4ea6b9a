"""How far a command is: a bar that moves on a terminal, some lines elsewhere."""

from __future__ import annotations

import io
import itertools
import re
import time
from contextlib import redirect_stderr

import pytest

from kohya_ext.core.console import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds pass between two looks at the clock."""
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 5.0 * next(clock))


def lines(stream: Terminal) -> list[str]:
    """What has stood on the line of the terminal, one after the other."""
    return re.split(r"\r\x1b\[K", stream.getvalue())[1:]


def test_a_terminal_gets_a_bar_that_moves(terminal: Terminal, slow: None) -> None:
    with redirect_stderr(terminal), Progress() as progress:
        for done in range(5):
            progress.show(done, 4, f"{done} of 4")
    shown = lines(terminal)
    assert [line.count("#") * 4 // shown[-1].count("#") for line in shown] == [0, 1, 2, 3, 4]
    assert all("] 2 of 4" in line for line in shown[2:3])
    assert shown[-1].endswith("] 4 of 4\n") and "\n" not in "".join(shown[:-1])


def test_what_has_not_come_to_its_end_leaves_no_half_line(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), redirect_stderr(terminal), Progress() as progress:
        progress.show(1, 4, "1 of 4")
        raise KeyboardInterrupt
    assert lines(terminal)[-1] == ""


def test_a_long_text_does_not_break_the_line(terminal: Terminal) -> None:
    with redirect_stderr(terminal), Progress() as progress:
        progress.show(1, 4, "a\nname " + "x" * 200)
    assert all(len(line) < 60 and "\n" not in line for line in lines(terminal))


def test_a_terminal_is_written_ten_times_a_second_at_most(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 1000)
    with redirect_stderr(terminal), Progress() as progress:
        for done in range(1001):
            progress.show(done, 1000, f"{done}")
    assert 9 <= len(lines(terminal)) <= 12
    assert lines(terminal)[-1].endswith("] 1000\n")


def test_a_log_gets_a_line_for_each_tenth_of_each_thing(slow: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for what in ("fetching", "checking"):
            for done in range(101):
                progress.show(done, 100, f"{what} {done} %", what)
    said = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in said] == [
        f"{what} {n}0 %" for what in ("fetching", "checking") for n in range(1, 11)
    ]


def test_what_is_done_at_once_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for done in range(5):
            progress.show(done, 4, f"{done} of 4")
    assert capsys.readouterr().err == ""


def test_no_progress_where_programs_read(terminal: Terminal, slow: None) -> None:
    with redirect_stderr(terminal), Progress(shown=False) as progress:
        progress.show(4, 4, "4 of 4")
    assert terminal.getvalue() == ""


def test_no_progress_in_a_log_where_programs_read(slow: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(shown=False) as progress:
        progress.show(4, 4, "4 of 4")
    assert capsys.readouterr().err == ""


def test_nothing_to_do_is_done(terminal: Terminal) -> None:
    with redirect_stderr(terminal), Progress() as progress:
        progress.show(0, 0, "none")
    assert lines(terminal)[-1].endswith("] none\n")
