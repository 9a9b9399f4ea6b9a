"""Colours reach terminals only, and never what is said: that is escaped as everywhere."""

from __future__ import annotations

import io

import pytest

from kohya_ext.core.console import Output
from kohya_ext.core.terminal import safe_streams


class Terminal(io.StringIO):
    encoding = "ascii"

    def isatty(self) -> bool:
        return True


def said(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, as_json: bool = False) -> str:
    monkeypatch.setattr("sys.stdout", stream)
    with safe_streams():
        Output("x", as_json).item("memory", "48 GiB: fi\x1b[31mts \u00e9\nmore", "good")
    return stream.getvalue()


def test_a_terminal_gets_the_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert said(monkeypatch, Terminal()) == (
        "memory       \x1b[32m48 GiB: fi\\x1b[31mts \\xe9\x1b[0m\n             more\n"
    )


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_nobody_else_does(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    plain = said(monkeypatch, io.StringIO())
    assert plain.startswith("memory       48 GiB: fi\\x1b[31mts")
    assert said(monkeypatch, Terminal(), as_json=True) == ""
    monkeypatch.setenv(variable, value)
    assert "\x1b" not in said(monkeypatch, Terminal())
