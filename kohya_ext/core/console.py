"""The output of commands: progress lines for people, one JSON document for programs, and warnings for both."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from kohya_ext.core.about import VERSION
from kohya_ext.core.terminal import Tone, coloured_line, document, indented, printable, rewrite_line

LABEL_WIDTH = 12
BAR_WIDTH = 20
TENTHS = 10
REDRAW_SECONDS = 0.1
QUIET_SECONDS = 2.0  # what takes no longer needs no lines in a log


class Output:
    """The output of one command. With `as_json` nothing but the final document reaches standard output.

    The document always holds `command`, `version`, `exit_code` and `warnings`; the rest belongs to the command.
    """

    def __init__(self, command: str, as_json: bool) -> None:
        self.command = command
        self.as_json = as_json
        self.warnings: list[str] = []

    def line(self, text: str = "") -> None:
        """Print one line for people."""
        if not self.as_json:
            print(text, flush=True)

    def row(self, text: str) -> None:
        """Print text that may hold names of others as one line, whatever is in it."""
        self.line(printable(text, one_line=True))

    def document(self, text: str) -> None:
        """Print text that is going to be used as it is, such as a command or a model card."""
        if not self.as_json:
            document(text)

    def item(self, label: str, text: str, tone: Tone | None = None) -> None:
        """Print one labelled progress line; further lines of `text` are indented below it. tone: of the first."""
        first, *rest = text.split("\n")
        if tone is None:
            self.line(f"{label:<{LABEL_WIDTH}} {first}")
        elif not self.as_json:
            coloured_line(f"{label:<{LABEL_WIDTH}} ", first, tone)
        for line in rest:
            self.line(f"{'':<{LABEL_WIDTH}} {line}")

    def warn(self, text: str) -> None:
        """Print a warning; the command continues."""
        self.warnings.append(text)
        if not self.as_json:
            print(f"{'warning':<{LABEL_WIDTH}} {indented(text, LABEL_WIDTH + 1)}", file=sys.stderr, flush=True)

    def finish(self, exit_code: int, **document: Any) -> int:
        """End the command: print the document when asked for, and hand back the exit code."""
        if self.as_json:
            head = {"command": self.command, "version": VERSION, "exit_code": exit_code}
            print(json.dumps({**head, **document, "warnings": self.warnings}, indent=2))
        return exit_code


class Progress:
    """How far a command is, on standard error: a bar that moves on a terminal, elsewhere some lines.

    shown: False where programs read what the command prints.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._moves = shown and sys.stderr is not None and sys.stderr.isatty()
        self._logged = shown and not self._moves and sys.stderr is not None
        self._begun = time.monotonic()
        self._redraw_at = 0.0
        self._open = False  # there is a line on the terminal that has not ended
        self._tenths: dict[str, int] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            rewrite_line("")

    def show(self, done: int, total: int, text: str, what: str = "") -> None:
        """`done` of `total` are done, as `text` says. what: in a log, each gets a line for every tenth of its way."""
        last, now = done >= total, time.monotonic()
        if self._moves:
            if now < self._redraw_at and not last:
                return
            self._redraw_at = now + REDRAW_SECONDS
            filled = BAR_WIDTH if last else BAR_WIDTH * done // total
            bar = f"{'':<{LABEL_WIDTH}} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {printable(text, one_line=True)}"
            rewrite_line(bar[: shutil.get_terminal_size().columns - 1], end="\n" if last else "")
            self._open = not last
        elif self._logged and now >= self._begun + QUIET_SECONDS:
            tenth = TENTHS if last else TENTHS * done // total
            if tenth > self._tenths.get(what, 0):
                self._tenths[what] = tenth
                print(f"{'':<{LABEL_WIDTH}} {printable(text, one_line=True)}", file=sys.stderr, flush=True)


def at_terminal() -> bool:
    """Whether somebody is there to answer."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty())


def chosen(question: str, choices: Sequence[str]) -> int | None:
    """Let a person choose: the position in `choices`, None for no choice of them."""
    for number, choice in enumerate(choices, 1):
        print(printable(f"  {number}  {choice}", one_line=True))
    answer = _answer(f"{question} [1-{len(choices)}] ") or ""
    return (
        int(answer) - 1
        if answer.isascii() and answer.isdecimal() and len(answer) < 4 and 1 <= int(answer) <= len(choices)
        else None
    )


def agreed(question: str, *, yes: bool, default: bool = True) -> bool:
    """Ask on the terminal; without one, or with --yes, the answer is yes: provisioning scripts cannot answer.

    default: what Enter alone means.
    """
    if yes or not at_terminal():
        return True
    answer = _answer(f"{question} {'[Y/n]' if default else '[y/N]'} ")
    if answer is None:
        return False
    return answer.lower() in ("y", "yes") or (default and not answer)


def _answer(question: str) -> str | None:
    """What is typed, None for Ctrl+D."""
    try:
        return input(printable(question)).strip()
    except EOFError:
        return None
