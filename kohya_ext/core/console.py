"""The output of commands: progress lines for people, one JSON document for programs, and warnings for both."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from kohya_ext.core.about import VERSION
from kohya_ext.core.terminal import document, indented, printable

LABEL_WIDTH = 12


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

    def item(self, label: str, text: str) -> None:
        """Print one labelled progress line; further lines of `text` are indented below it."""
        first, *rest = text.split("\n")
        self.line(f"{label:<{LABEL_WIDTH}} {first}")
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
