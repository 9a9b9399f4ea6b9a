"""What a command is going to do to a data set, before it does anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kohya_ext.files.journal import Change, Effect, FileState, Step

RENAME = "rename"


@dataclass
class EditPlan:
    """The steps of one command, and what there is to say about them.

    written: path -> (text before, None when there was no file; text after). renamed: (from, to). kept: (path, why).
    notes: (path, what) of files that are changed, but not quite as asked for.
    All paths are posix and relative to the folder.
    """

    verb: str
    steps: list[Step] = field(default_factory=list)
    written: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    unchanged: int = 0

    def write(self, path: Path, before: FileState | None, after: FileState, texts: tuple[str | None, str]) -> None:
        """Let `path` become `after`; `texts` are what it says before and after."""
        self.steps.append(Change(path.as_posix(), before, after))
        self.written[path.as_posix()] = texts

    def rename(self, old: Path, new: Path) -> None:
        """Let `old` get the name `new`, which is free when this step comes."""
        self.steps.append(Effect(RENAME, {"from": old.as_posix(), "to": new.as_posix()}))

    def keep(self, path: Path, why: str) -> None:
        """Leave `path` alone, and say why."""
        self.kept.append((path.as_posix(), why))

    def note(self, path: Path, what: str) -> None:
        """Say something about a file that is changed all the same."""
        self.notes.append((path.as_posix(), what))
