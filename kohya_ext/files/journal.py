"""The steps of a transaction, and their record on disk from which a killed one is rolled back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import Owner, sha256
from kohya_ext.files.folder import PERMISSIONS, Folder, NotRegularError, opened
from kohya_ext.files.paths import checked

FORMAT = 1


@dataclass(frozen=True)
class FileState:
    """A regular file: its bytes, permission bits, and owner (user and group id, None where there are none)."""

    data: bytes
    mode: int
    owner: Owner | None = None


@dataclass(frozen=True)
class Change:
    """One file as it is and as it shall be; `path` is posix and relative to the root, None means absent."""

    path: str
    before: FileState | None
    after: FileState | None


@dataclass(frozen=True)
class Effect:
    """A step that is not the content of a file below the root; `name` selects its Operation."""

    name: str
    arguments: Mapping[str, Any]


class Operation(Protocol):
    """How an effect is done and taken back. All of it must be harmless when repeated."""

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Do it, before the commit."""

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Take it back; harmless where it was never applied."""

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """What must wait until nothing is taken back any more: it comes after the commit."""


Step = Change | Effect


@dataclass(frozen=True)
class Side:
    """One side of a change in the journal; its bytes are in `blob`, a file in the folder of staged files."""

    sha256: str
    mode: int
    owner: Owner | None
    blob: str

    def matches(self, state: FileState | None) -> bool:
        """True when `state` has these bytes (its mode may differ)."""
        return state is not None and sha256(state.data) == self.sha256


@dataclass(frozen=True)
class ChangeRecord:
    """A change in the journal."""

    path: str
    before: Side | None
    after: Side | None


Record = ChangeRecord | Effect


@dataclass(frozen=True)
class Journal:
    """verb: what the user asked for. created: folders the transaction makes, outermost first."""

    verb: str
    records: tuple[Record, ...]
    created: tuple[str, ...]

    @classmethod
    def plan(cls, root: Path, verb: str, steps: Sequence[Step]) -> Journal:
        """The journal of `steps` on the tree below `root` as it is now."""
        records: list[Record] = []
        created: list[str] = []
        for number, step in enumerate(steps):
            if isinstance(step, Effect):
                records.append(step)
                continue
            sides = (_side(step.before, f"{number}.before"), _side(step.after, f"{number}.after"))
            records.append(ChangeRecord(step.path, *sides))
            if step.after is not None:
                created += [folder for folder in _missing_folders(root, step.path) if folder not in created]
        return cls(verb, tuple(records), tuple(created))

    def to_json(self) -> bytes:
        """The journal as it is written."""
        rows = [
            {"effect": record.name, "arguments": dict(record.arguments)}
            if isinstance(record, Effect)
            else {"path": record.path, "before": _as_dict(record.before), "after": _as_dict(record.after)}
            for record in self.records
        ]
        document = {"format": FORMAT, "verb": self.verb, "created": list(self.created), "steps": rows}
        return json.dumps(document, indent=1).encode()

    @classmethod
    def read(cls, folder: Folder, name: str) -> Journal:
        """The journal `name`. Raises ConflictError when it is damaged or names a path outside the checkout."""
        source = f"the journal {folder.path / name}"
        try:
            state = state_in(folder, name)
            document = json.loads(b"" if state is None else state.data)
            if document["format"] != FORMAT:
                raise ConflictError(f"{source} was written by another version of kohya_ext: run doctor with that one")
            records = tuple(_record(row, source) for row in document["steps"])
            created = tuple(checked(folder, source) for folder in document["created"])
            return cls(str(document["verb"]), records, created)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConflictError(
                f"{source} is damaged ({error}). The originals are in backup/ and staged/ next to it; put them back, or"
                " use `git checkout --ignore-skip-worktree-bits -- FILE`, then remove that folder"
            ) from error


def read_state(path: Path) -> FileState | None:
    """The file at `path`, None when there is none. Raises ConflictError when it is not a regular file; OSError."""
    try:
        with opened(path.parent.resolve()) as folder:
            return state_in(folder, path.name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def state_in(folder: Folder, name: str) -> FileState | None:
    """The file `name` in an open folder, as `read_state` has it."""
    try:
        found = folder.read(name)
    except NotRegularError as error:
        raise ConflictError(f"{error.filename} {error.strerror}; nothing was changed. Move it away") from error
    if found is None:
        return None
    data, what = found
    owner = (what.st_uid, what.st_gid) if hasattr(os, "chown") else None
    return FileState(data, what.st_mode & PERMISSIONS, owner)


def _missing_folders(root: Path, path: str) -> list[str]:
    parents = [parent for parent in Path(path).parents if parent != Path()]
    return [parent.as_posix() for parent in reversed(parents) if not (root / parent).exists()]


def _side(state: FileState | None, blob: str) -> Side | None:
    return None if state is None else Side(sha256(state.data), state.mode, state.owner, blob)


def _as_dict(side: Side | None) -> dict[str, Any] | None:
    if side is None:
        return None
    return {"sha256": side.sha256, "mode": side.mode, "owner": side.owner and list(side.owner), "blob": side.blob}


def _record(row: Mapping[str, Any], source: str) -> Record:
    if "effect" in row:
        return Effect(str(row["effect"]), dict(row["arguments"]))
    return ChangeRecord(checked(row["path"], source), _side_of(row["before"], source), _side_of(row["after"], source))


def _side_of(row: Mapping[str, Any] | None, source: str) -> Side | None:
    if row is None:
        return None
    owner, blob = row["owner"], checked(row["blob"], source)
    if "/" in blob:
        raise ConflictError(f"{source} contains {blob!r} where a plain file name is expected; nothing was changed")
    mode = int(row["mode"]) & PERMISSIONS
    return Side(str(row["sha256"]), mode, (int(owner[0]), int(owner[1])) if owner else None, blob)
