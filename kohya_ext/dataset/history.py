"""What a command is going to do to a data set, done as one transaction, and taken back later.

Each command leaves a record in `FOLDER/.kohya_ext`, written in the same transaction as its changes. `undo` is a
transaction too, from the record backwards. So a kill at any point leaves either side, and the next command tidies up.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_ext.core import shell
from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.files.atomic import sha256
from kohya_ext.files.folder import PERMISSIONS, Folder, opened
from kohya_ext.files.journal import Change, Effect, FileState, Step, read_state
from kohya_ext.files.lock import locked
from kohya_ext.files.paths import checked, inside, real_inside
from kohya_ext.files.transaction import STATE_FOLDER, Recovery, Transaction

RENAME = "rename"
FORMAT = 1
PATTERN = "captions-*.json"
_RECORD = re.compile(r"captions-[0-9]{1,9}\.json")
UNDO = "captions undo"


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


class _Rename:
    """A file gets another name, without being copied."""

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        with self._places(root, arguments) as (source, old, target, new):
            if target.lstat(new) is not None:
                raise ConflictError(
                    f"{target.path / new} was created by another program just now; nothing was changed. Run again"
                )
            source.replace(old, target, new)
            target.sync()

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        with self._places(root, arguments) as (source, old, target, new):
            if target.lstat(new) is not None and source.lstat(old) is None:
                target.replace(new, source, old)
                source.sync()

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Nothing waits for the commit."""

    @staticmethod
    @contextlib.contextmanager
    def _places(root: Path, arguments: Mapping[str, Any]) -> Iterator[tuple[Folder, str, Folder, str]]:
        (one, old), (other, new) = (real_inside(root, arguments[key], "the journal") for key in ("from", "to"))
        with opened(one) as source, opened(other) as target:
            yield source, old, target, new


OPERATIONS = {RENAME: _Rename()}


@dataclass(frozen=True)
class Undone:
    """verb: the command that was taken back. paths: of the files it concerned. kept: those edited since, left alone."""

    verb: str
    paths: tuple[str, ...]
    kept: tuple[str, ...]


def apply(folder: Path, plan: EditPlan) -> None:
    """Do what `plan` says, or nothing. Raises ConflictError."""
    if not plan.steps:
        return
    folder = folder.resolve()
    with locked(folder):
        number = max((int(path.stem.rpartition("-")[2]) for path in _records(folder)), default=0) + 1
        record = f"{STATE_FOLDER}/captions-{number:04d}.json"
        data = json.dumps({"format": FORMAT, "verb": plan.verb, "time": time.time(), "steps": _rows(plan)})
        steps = [*plan.steps, Change(record, None, FileState(data.encode(), 0o644))]
        Transaction(folder, OPERATIONS).run(plan.verb, steps)


def recover(folder: Path) -> Recovery | None:
    """Bring an interrupted command to one of its two sides; None when there is none."""
    folder = folder.resolve()
    if not (folder / STATE_FOLDER).is_dir():
        return None
    with locked(folder):
        return Transaction(folder, OPERATIONS).recover()


def has_undone(recovery: Recovery) -> bool:
    """Whether tidying up has left the last command taken back already, so that `undo` would go one further.

    Of remains that no longer say what they are of, the careful answer.
    """
    return (recovery.side == "after") == (recovery.verb == UNDO)


def undo(folder: Path, *, keep_edited: bool = False, dry_run: bool = False) -> Undone:
    """Take back the last command on `folder` that has not been taken back yet.

    Raises UsageError when there is none; ConflictError, with nothing changed, when files were edited or moved since,
    unless `keep_edited`: these stay then as they are.
    """
    folder = folder.resolve()
    with locked(folder):
        records = _records(folder)
        if not records:
            raise UsageError(f"there is nothing to undo in {folder}: no captions command has changed it")
        path = records[-1]
        document = _read(path)
        steps, kept = _reversed(folder, document)
        if kept and not keep_edited and not dry_run:
            raise ConflictError(
                f"changed since `{document['verb']}`: {', '.join(kept)}; nothing was changed. "
                "--keep-edited undoes the rest and keeps these"
            )
        touched = tuple(step.path if isinstance(step, Change) else str(step.arguments["to"]) for step in steps)
        if not dry_run:
            removal = Change(path.relative_to(folder).as_posix(), read_state(path), None)
            Transaction(folder, OPERATIONS).run(UNDO, [*steps, removal])
        return Undone(str(document["verb"]), touched, tuple(kept))


def _records(folder: Path) -> list[Path]:
    found = (folder / STATE_FOLDER).glob(PATTERN)
    return sorted(path for path in found if _RECORD.fullmatch(path.name))


def _rows(plan: EditPlan) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in plan.steps:
        if isinstance(step, Effect):
            rows.append(dict(step.arguments))
        elif step.after is not None:
            before = None
            if step.before is not None:
                before = {"data": base64.b64encode(step.before.data).decode(), "mode": step.before.mode}
            rows.append({"path": step.path, "before": before, "after": sha256(step.after.data)})
    return rows


def _read(path: Path) -> dict[str, Any]:
    try:
        state = read_state(path)
        document: dict[str, Any] = json.loads(b"" if state is None else state.data)
        if document["format"] != FORMAT:
            raise ConflictError(f"{path} was written by another version of kohya_ext: undo with that one")
        if not isinstance(document["verb"], str) or not isinstance(document["steps"], list):
            raise ValueError("it names no command")
        for row in document["steps"]:
            _check_row(row, str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConflictError(
            f"{path} is damaged ({reason}): the command that it records cannot be undone; nothing was changed. "
            f"To undo the one before it, remove the record: {shell.remove(path)}"
        ) from error
    return document


def _check_row(row: Mapping[str, Any], source: str) -> None:
    """Raises ValueError, KeyError, TypeError when a step is not one; ConflictError when it leads elsewhere."""
    if "path" not in row:
        for key in ("from", "to"):
            checked(row[key], source)
        return
    checked(row["path"], source)
    if not isinstance(row["after"], str):
        raise ValueError("a step has no checksum")
    before = row["before"]
    if before is None:
        return
    base64.b64decode(before["data"], validate=True)
    if isinstance(before["mode"], bool) or not isinstance(before["mode"], int) or not 0 <= before["mode"] <= 0o777:
        raise ValueError(f"{before['mode']!r} is not the mode of a file")


def _reversed(folder: Path, document: Mapping[str, Any]) -> tuple[list[Step], list[str]]:
    """The steps back, and the files that are not as the command left them."""
    steps: list[Step] = []
    kept = _lost(folder, document["steps"])
    for row in reversed(document["steps"]):
        if "path" not in row:
            if not kept:  # renames lean on each other: all or none
                steps.append(Effect(RENAME, {"from": row["to"], "to": row["from"]}))
            continue
        current = read_state(inside(folder, row["path"]))
        if current is None or sha256(current.data) != row["after"]:
            kept.append(row["path"])
            continue
        before = None
        if row["before"] is not None:
            before = FileState(
                base64.b64decode(row["before"]["data"]), int(row["before"]["mode"]) & PERMISSIONS, current.owner
            )
        steps.append(Change(row["path"], current, before))
    return steps, kept


def _lost(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Renamed files that are no longer where the command left them, or whose old name somebody else has now."""
    there: dict[str, bool] = {}
    names: dict[str, str] = {}  # name now -> name before the command
    for row in rows:
        if "from" in row:
            names[row["to"]] = names.pop(row["from"], row["from"])
    for now, before in names.items():
        there[now] = (folder / now).exists() and (before in names or not (folder / before).exists())
    return [name for name, present in there.items() if not present]
