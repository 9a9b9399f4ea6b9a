"""The arguments of one command, on its command line and in the TOML file that it reads: asked for, changed, dropped."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ScriptCommand:
    """One script to run.

    script: its file. words: what follows on the command line. settings: of the file that `--config_file` names, by
    argument; they are written to a file of ours.
    """

    script: str
    words: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """What an argument is given; the command line has the last word. None where it is not given."""
        at = self._at(name)
        if at is None:
            return self.settings.get(name)
        _, equals, text = self.words[at].partition("=")
        if equals:
            return text
        after = self.words[at + 1 : at + 2]
        return after[0] if after and not after[0].startswith("--") else True

    def change(self, name: str, value: str) -> None:
        """Give another value to an argument that is given."""
        at = self._at(name)
        if name in self.settings:
            self.settings[name] = value
        if at is None:
            return
        if "=" in self.words[at]:
            self.words[at] = f"--{name}={value}"
        elif at + 1 < len(self.words):
            self.words[at + 1] = value

    def drop(self, name: str) -> None:
        """Remove an argument and its values."""
        self.settings.pop(name, None)
        while (at := self._at(name)) is not None:
            after = [] if "=" in self.words[at] else self.words[at + 1 :]
            values = list(itertools.takewhile(lambda word: not word.startswith("--"), after))
            del self.words[at : at + 1 + len(values)]

    def give(self, name: str, value: Any) -> None:
        """Give an argument this value alone. value: True for a switch; a list for an argument of several words."""
        self.drop(name)
        if isinstance(value, list):
            self.words += [f"--{name}", *map(str, value)]
        else:
            self.words.append(f"--{name}" if value is True else f"--{name}={value}")

    def given(self) -> Mapping[str, Any]:
        """Every argument that is given by its full name."""
        names = [word[2:].partition("=")[0] for word in self.words if word.startswith("--")]
        return {**self.settings, **{name: self.value(name) for name in names}}

    def _at(self, name: str) -> int | None:
        """Where the argument is last on the command line."""
        flags = [index for index, word in enumerate(self.words) if word.partition("=")[0] == f"--{name}"]
        return flags[-1] if flags else None


def script_command(words: list[str], files: Mapping[str, Mapping[str, Any]]) -> ScriptCommand | None:
    """The script that a launch command runs.

    Args:
        words: the command, launcher and its options included.
        files: TOML files by name, as they will be.

    Returns:
        The script and its arguments; None where the command runs no Python file.
    """
    at = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
    if at is None:
        return None
    command = ScriptCommand(words[at], list(words[at + 1 :]))
    for settings in files.values():
        for key, value in settings.items():
            command.settings.update(value if isinstance(value, dict) else {key: value})
    return command
