"""Several files changed as one: wholly, or not at all, also when the process is killed in between.

Everything that needs disk space comes first: the old and the new bytes of every file are staged in the state folder
before the first file is touched. After that files are only renamed into place, and taking back is renaming too.

    staged/ -> journal.json -> files and effects, in order -> verified -> journal.json renamed to done.json -> cleared

A process that finds a journal takes everything back; one that finds `done.json` only clears up.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohya_ext.errors import ConflictError
from kohya_ext.files import journal as journals
from kohya_ext.files.atomic import (
    TEMPORARY_SUFFIX,
    owner_for,
    sync_file,
    sync_folder,
    take_owner,
    temporary_name,
    write_atomic,
    write_new,
)
from kohya_ext.files.boundary import crossed
from kohya_ext.files.journal import Change, ChangeRecord, Effect, Journal, Operation, Side, Step, read_state
from kohya_ext.files.paths import inside

STATE_FOLDER = ".kohya_ext"
SELF_IGNORE = ".gitignore"  # hides the state folder from git from its first moment on, without touching the repository
JOURNAL = "journal.json"
DONE = "done.json"
STAGED = "staged"


@dataclass(frozen=True)
class Recovery:
    """What was done about an interrupted transaction.

    verb: what had been interrupted ("" when it had not begun). side: the state that the tree is in now, as before that
    verb or as after it. kept: files left alone because somebody else has changed them since.
    """

    verb: str
    side: Literal["before", "after"]
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"an interrupted {self.verb}" if self.verb else "the remains of an interrupted command"
        done = "completed" if self.side == "after" else "taken back; everything is as it was before it"
        text = f"found {what}: {done}"
        return text + (f" (left alone, changed by somebody since: {', '.join(self.kept)})" if self.kept else "")


class Transaction:
    """Changes below `root`, with its records in `root/.kohya_ext`. The caller holds the lock of `root`."""

    def __init__(self, root: Path, operations: Mapping[str, Operation] | None = None) -> None:
        self.root = root
        self.state = root / STATE_FOLDER
        self.operations = operations or {}
        self._touched: set[Path] = set()  # folders whose changes the disk may not have yet

    def run(self, verb: str, steps: Sequence[Step], prune: Sequence[str] = ()) -> None:
        """Do `steps` in order, or nothing.

        prune: folders to remove afterwards if they are empty, outermost first.
        Raises ConflictError, after taking everything back, when a file is not as `steps` expect it, or on any OSError.
        """
        with explained(self.root):
            for step in steps:
                if isinstance(step, Change):
                    self._require(step.path, step.before)
            journal = Journal.plan(self.root, verb, steps)
            try:
                self._stage(journal, steps)
                self._forward(journal, steps, prune)
            except BaseException:
                self._take_back(journal)
                raise
            with contextlib.suppress(OSError):  # all is done; what is left over is cleared by the next command
                self._finish(journal)
                self._clear()

    def recover(self) -> Recovery | None:
        """Bring an interrupted transaction to one of its two sides; None when there is none.

        Raises ConflictError when it cannot be (no permission, damaged journal); it can be tried again then.
        """
        if self.state.is_symlink() or not self.state.is_dir():
            return None
        with explained(self.root):
            done, open_ = self.state / DONE, self.state / JOURNAL
            if done.exists():
                journal = Journal.read(done)
                self._finish(journal)
                recovery = Recovery(journal.verb, "after")
            elif open_.exists():
                journal = Journal.read(open_)
                recovery = Recovery(journal.verb, "before", self._roll_back(journal))
            elif self._remains():
                recovery = Recovery("", "before")
            else:
                self._clear()
                return None
            self._clear()
            return recovery

    def interrupted(self) -> bool:
        """True when `recover` would find something to do. Reads only."""
        return (self.state / DONE).exists() or (self.state / JOURNAL).exists() or self._remains()

    def open_effects(self) -> tuple[Effect, ...]:
        """The effects that `recover` would take back or finish. Reads only. Raises ConflictError: a damaged journal."""
        for name in (DONE, JOURNAL):
            if (self.state / name).exists():
                records = Journal.read(self.state / name).records
                return tuple(record for record in records if isinstance(record, Effect))
        return ()

    def _remains(self) -> bool:
        if not self.state.is_dir():
            return False
        names = {entry.name for entry in self.state.iterdir()}
        return STAGED in names or any(name.endswith(TEMPORARY_SUFFIX) for name in names)

    def _stage(self, journal: Journal, steps: Sequence[Step]) -> None:
        if self.state.is_symlink() or (self.state.exists() and not self.state.is_dir()):
            raise ConflictError(f"{self.state} is not a folder of ours; nothing was changed. Move it away")
        crossed("before staging")
        self._make_folder(self.state)
        crossed("state folder made")
        if not (self.state / SELF_IGNORE).exists():
            write_atomic(self.state / SELF_IGNORE, b"*\n", mode=0o644)
        staged = self.state / STAGED
        self._make_folder(staged)
        for step, record in zip(steps, journal.records, strict=True):
            if isinstance(step, Effect) or isinstance(record, Effect):
                continue
            for state, side in ((step.before, record.before), (step.after, record.after)):
                if state is not None and side is not None:
                    write_new(staged / side.blob, state.data, mode=state.mode, owner=state.owner)
                    crossed(f"staged {side.blob}")
        for blob in staged.iterdir():
            sync_file(blob)
        sync_folder(staged)
        sync_folder(self.state)
        write_atomic(self.state / JOURNAL, journal.to_json(), mode=0o644)

    def _forward(self, journal: Journal, steps: Sequence[Step], prune: Sequence[str]) -> None:
        for step, record in zip(steps, journal.records, strict=True):
            if isinstance(record, Effect):
                crossed(f"before {record.name}")
                self._operation(record).apply(self.root, record.arguments)
                crossed(f"after {record.name}")
            elif isinstance(step, Change):
                self._require(step.path, step.before)
                self._put(record.path, record.after)
        for step in steps:
            if isinstance(step, Change):
                self._verify(step)
        self._sync_touched()
        self._remove_empty(prune)
        crossed("before commit")
        (self.state / JOURNAL).replace(self.state / DONE)
        sync_folder(self.state)
        crossed("after commit")

    def _finish(self, journal: Journal) -> None:
        for record in journal.records:
            if isinstance(record, Effect):
                self._operation(record).finish(self.root, record.arguments)
                crossed(f"finished {record.name}")

    def _put(self, path: str, side: Side | None) -> None:
        """Make `path` what `side` says; the bytes are staged."""
        target = inside(self.root, path)
        crossed(f"before {path}")
        if side is None:
            target.unlink(missing_ok=True)
        else:
            self._make_parents(target)
            staged = self.state / STAGED / side.blob
            try:
                staged.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # the target lies on another file system (a mounted volume), where renaming cannot reach
                write_atomic(target, staged.read_bytes(), mode=side.mode, owner=side.owner)
        self._touched.add(target.parent)
        crossed(f"after {path}")

    def _take_back(self, journal: Journal) -> None:
        """After a failure in this process: roll back unless the commit has already happened."""
        if (self.state / JOURNAL).exists():
            try:
                self._roll_back(journal)
            except OSError as error:
                raise ConflictError(
                    f"{_reason(error, self.root)}. "
                    "Not everything could be taken back: remove the cause, then run the command again"
                ) from error
        with contextlib.suppress(OSError):
            if (self.state / DONE).exists():
                self._finish(journal)
            self._clear()

    def _roll_back(self, journal: Journal) -> tuple[str, ...]:
        kept = []
        for record in reversed(journal.records):
            if isinstance(record, Effect):
                crossed(f"before taking back {record.name}")
                self._operation(record).revert(self.root, record.arguments)
                crossed(f"after taking back {record.name}")
            elif not self._restore(record):
                kept.append(record.path)
        self._sync_touched()
        self._remove_empty(journal.created)
        crossed("before closing the journal")
        (self.state / JOURNAL).unlink()
        sync_folder(self.state)
        crossed("after closing the journal")
        return tuple(kept)

    def _restore(self, record: ChangeRecord) -> bool:
        """Back to `before`; False when the file is neither before nor after, so somebody else's, and is left alone."""
        target = inside(self.root, record.path)
        temporary_name(target).unlink(missing_ok=True)
        current = read_state(target)
        before, after = record.before, record.after
        if before is None and current is None:
            return True
        if before is not None and before.matches(current):
            if current is not None and current.mode != before.mode:
                target.chmod(before.mode)
            return True
        if current is not None and (after is None or not after.matches(current)):
            return False
        if current is None and after is not None:
            return False
        if before is not None and not (self.state / STAGED / before.blob).exists():
            raise ConflictError(f"{self.state / STAGED} is incomplete: {record.path} cannot be taken back from it")
        self._put(record.path, before)
        return True

    def _clear(self) -> None:
        """Remove what only a running transaction needs, and the state folder itself when nothing else is in it."""
        staged = self.state / STAGED
        if not self.state.is_dir():
            return
        crossed("before clearing")
        if staged.is_dir():
            shutil.rmtree(staged)
        crossed("staged files cleared")
        for left in self.state.glob(f".*{TEMPORARY_SUFFIX}"):
            left.unlink()
        (self.state / DONE).unlink(missing_ok=True)
        crossed("journal cleared")
        if {entry.name for entry in self.state.iterdir()} <= {SELF_IGNORE}:
            (self.state / SELF_IGNORE).unlink(missing_ok=True)
            crossed("ignore file cleared")
        with contextlib.suppress(OSError):
            self.state.rmdir()
        sync_folder(self.root)

    def _remove_empty(self, folders: Sequence[str]) -> None:
        for folder in reversed(folders):
            with contextlib.suppress(OSError):
                inside(self.root, folder).rmdir()
            crossed(f"folder {folder} seen to")

    def _sync_touched(self) -> None:
        for folder in self._touched:
            sync_folder(folder)
        self._touched.clear()

    def _make_parents(self, target: Path) -> None:
        for folder in reversed(target.parents):
            if folder.is_relative_to(self.root) and not folder.exists():
                self._make_folder(folder)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        folder.mkdir()
        take_owner(folder, owner_for(folder.parent))
        sync_folder(folder.parent)
        crossed(f"made folder {folder.name}")

    def _require(self, path: str, expected: journals.FileState | None) -> None:
        found = read_state(inside(self.root, path))
        if (found and found.data) != (expected and expected.data):
            raise ConflictError(f"{path} was changed by somebody else at this moment; nothing was changed. Run again")

    def _verify(self, change: Change) -> None:
        found = read_state(inside(self.root, change.path))
        wanted = change.after
        same = (found and found.data) == (wanted and wanted.data)
        if found and wanted and change.before:  # the mode of a new file is the file system's to choose (vfat, NTFS)
            same = same and found.mode == wanted.mode
        if not same:
            raise ConflictError(f"{change.path} did not come out as written; everything was taken back")

    def _operation(self, effect: Effect) -> Operation:
        if effect.name not in self.operations:
            raise ConflictError(
                f"the journal in {self.state} holds an unknown step {effect.name!r}; use the newer kohya_ext"
            )
        return self.operations[effect.name]


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn an OSError into a ConflictError that says the cause and the cure."""
    try:
        yield
    except OSError as error:
        raise ConflictError(f"{_reason(error, root)}. Nothing was changed") from error


def _reason(error: OSError, root: Path) -> str:
    where = error.filename2 or error.filename or root
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk (or quota) that holds {root}: free some and run again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission to write {where}: run as the user that owns it, or as root"
    if error.errno == errno.EROFS:
        return f"{where} lies on a read-only file system: mount it writable and run again"
    return f"{where}: {error.strerror or error}"
