"""How commands speak: progress lines for people, one JSON document for programs, and warnings for both."""

from __future__ import annotations

import json
import sys
from typing import Any

from kohya_ext.about import VERSION

LABEL_WIDTH = 12


class Output:
    """The voice of one command. With `as_json` nothing but the final document reaches standard output.

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

    def item(self, label: str, text: str) -> None:
        """Print one labelled progress line; further lines of `text` are indented below it."""
        first, *rest = text.splitlines() or [""]
        self.line(f"{label:<{LABEL_WIDTH}} {first}")
        for line in rest:
            self.line(f"{'':<{LABEL_WIDTH}} {line}")

    def warn(self, text: str) -> None:
        """Say what the user should know though the command goes on."""
        self.warnings.append(text)
        if not self.as_json:
            print(f"{'warning':<{LABEL_WIDTH}} {text}", file=sys.stderr, flush=True)

    def finish(self, exit_code: int, **document: Any) -> int:
        """End the command: print the document when asked for, and hand back the exit code."""
        if self.as_json:
            head = {"command": self.command, "version": VERSION, "exit_code": exit_code}
            print(json.dumps({**head, **document, "warnings": self.warnings}, indent=2))
        return exit_code


def agreed(question: str, *, yes: bool) -> bool:
    """Ask on the terminal; without one, or with --yes, the answer is yes: provisioning scripts cannot answer."""
    if yes or not sys.stdin or not sys.stdin.isatty() or not sys.stdout.isatty():
        return True
    return input(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")
