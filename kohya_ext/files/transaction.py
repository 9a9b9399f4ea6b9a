"""Changes several files as one transaction: completely or not at all, even if the process is killed in between.

Everything that needs disk space comes first: the old and the new bytes of every file are staged in the state folder
before the first file is touched. After that files are only renamed into place, and taking back is renaming too.

    staged/ -> journal.json -> files and effects, in order -> verified -> journal.json renamed to done.json -> cleared

A process that finds a journal takes everything back; one that finds `done.json` only clears up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohya_ext.core.errors import ConflictError
from kohya_ext.files import journal as journals
from kohya_ext.files.atomic import TEMPORARY_SUFFIX, clear_leftovers, write_into, write_new
from kohya_ext.files.disk import explained, reason
from kohya_ext.files.faultpoints import crossed
from kohya_ext.files.folder import Folder, opened
from kohya_ext.files.journal import Change, ChangeRecord, Effect, Journal, Operation, Side, Step, state_in
from kohya_ext.files.paths import real_inside
from kohya_ext.spec.measurements import FILE_NAME as MEASUREMENTS

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
        done = "completed" if self.side == "after" else "rolled back; everything is as it was before"
        text = f"found {what}: {done}"
        return text + (f" (left alone, changed by somebody since: {', '.join(self.kept)})" if self.kept else "")


class Transaction:
    """Changes below `root`, with its records in `root/.kohya_ext`. The caller holds the lock of `root`.

    root: absolute and without links in it (resolved). Where a link comes into it later, everything is refused.
    """

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
        with explained(self.root):
            names = self._names()
            if names is None:
                return None
            self._require_trusted()
            if DONE in names:
                journal = self._journal(DONE)
                self._finish(journal)
                recovery = Recovery(journal.verb, "after")
            elif JOURNAL in names:
                journal = self._journal(JOURNAL)
                recovery = Recovery(journal.verb, "before", self._roll_back(journal))
            elif _remains(names):
                recovery = Recovery("", "before")
            else:
                self._clear()
                return None
            self._clear()
            return recovery

    def interrupted(self) -> bool:
        """True when `recover` would find something to do. Reads only."""
        names = self._names()
        if names is None:
            return False
        bare = {*names} <= {SELF_IGNORE}  # the folder has just been made, or all but removed
        return bare or DONE in names or JOURNAL in names or _remains(names)

    def open_effects(self) -> tuple[Effect, ...]:
        """The effects that `recover` would take back or finish. Reads only. Raises ConflictError: a damaged journal."""
        names = self._names() or []
        for name in (DONE, JOURNAL):
            if name in names:
                return tuple(record for record in self._journal(name).records if isinstance(record, Effect))
        return ()

    def _names(self) -> list[str] | None:
        """What is in the state folder, None where that is not there or not a folder of ours."""
        try:
            with opened(self.state) as state:
                return state.names()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _journal(self, name: str) -> Journal:
        with opened(self.state) as state:
            return Journal.read(state, name)

    def _require_trusted(self) -> None:
        """Do only what root, this user or the owner of the tree has written down, or who could do it all himself."""
        if not hasattr(os, "geteuid"):
            return
        with opened(self.root) as root, root.entered(STATE_FOLDER) as state:
            tree = root.stat()
            if tree.st_mode & 0o022 and not tree.st_mode & stat.S_ISVTX:
                return
            for found in (state.stat(), *map(state.lstat, (JOURNAL, DONE, STAGED))):
                if found is not None and found.st_uid not in (0, os.geteuid(), tree.st_uid):
                    raise ConflictError(
                        f"{self.state} was written by user {found.st_uid}, who owns neither the checkout nor this "
                        "process: it is not trusted, and nothing was changed. Inspect it, then remove it"
                    )

    def _stage(self, journal: Journal, steps: Sequence[Step]) -> None:
        crossed("before staging")
        with opened(self.root) as root:
            try:
                self._make_folder(root, STATE_FOLDER)
                crossed("state folder made")
                with root.entered(STATE_FOLDER) as state:
                    self._fill(state, journal, steps)
            except NotADirectoryError as error:
                raise ConflictError(
                    f"{self.state} was not made by kohya_ext; nothing was changed. Move it away"
                ) from error

    def _fill(self, state: Folder, journal: Journal, steps: Sequence[Step]) -> None:
        if state.lstat(SELF_IGNORE) is None:
            write_into(state, SELF_IGNORE, b"*\n", mode=0o644)
        self._make_folder(state, STAGED)
        with state.entered(STAGED) as staged:
            for step, record in zip(steps, journal.records, strict=True):
                if isinstance(step, Effect) or isinstance(record, Effect):
                    continue
                for content, side in ((step.before, record.before), (step.after, record.after)):
                    if content is not None and side is not None:
                        write_new(staged, side.blob, content.data, mode=content.mode, owner=content.owner)
                        crossed(f"staged {side.blob}")
            staged.sync()
        state.sync()
        write_into(state, JOURNAL, journal.to_json(), mode=0o644)

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
        with opened(self.state) as state:
            state.replace(JOURNAL, state, DONE)
            state.sync()
        crossed("after commit")

    def _finish(self, journal: Journal) -> None:
        for record in journal.records:
            if isinstance(record, Effect):
                self._operation(record).finish(self.root, record.arguments)
                crossed(f"finished {record.name}")

    def _put(self, path: str, side: Side | None) -> None:
        """Make `path` what `side` says; the bytes are staged."""
        crossed(f"before {path}")
        if side is None:
            with contextlib.suppress(FileNotFoundError), self._folder_of(path) as (folder, name):
                folder.unlink(name, missing_ok=True)
                self._touched.add(folder.path)
        else:
            self._make_parents(path)
            with self._folder_of(path) as (folder, name), opened(self.state / STAGED) as staged:
                self._move(staged, side, folder, name)
                self._touched.add(folder.path)
        crossed(f"after {path}")

    @staticmethod
    def _move(staged: Folder, side: Side, folder: Folder, name: str) -> None:
        """The staged file into place, if it is what the journal says; its owner and mode came with the staging."""
        found = state_in(staged, side.blob)
        if found is None or not side.matches(found):
            raise ConflictError(f"{staged.path / side.blob} does not match the journal: stop whatever changes it")
        staged.give_mode(side.blob, found.mode)  # nothing else than permissions
        try:
            staged.replace(side.blob, folder, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # the target lies on another file system (a mounted volume), where renaming cannot reach
            write_into(folder, name, found.data, mode=found.mode, owner=found.owner)

    def _take_back(self, journal: Journal) -> None:
        """After a failure in this process: roll back unless the commit has already happened."""
        if self._has(JOURNAL):
            try:
                self._roll_back(journal)
            except OSError as error:
                raise ConflictError(
                    f"{reason(error, self.root)}. "
                    "Not everything could be rolled back: remove the cause, then run the command again"
                ) from error
        with contextlib.suppress(OSError):
            if self._has(DONE):
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
        with opened(self.state) as state:
            state.unlink(JOURNAL)
            state.sync()
        crossed("after closing the journal")
        return tuple(kept)

    def _has(self, name: str) -> bool:
        try:
            with opened(self.state) as state:
                return state.lstat(name) is not None
        except OSError:
            return False

    def _restore(self, record: ChangeRecord) -> bool:
        """Back to `before`; False when the file is neither before nor after, so somebody else's, and is left alone."""
        current = self._current(record.path, clear=True)
        before, after = record.before, record.after
        if before is None and current is None:
            return True
        if before is not None and before.matches(current):
            if current is not None and current.mode != before.mode:
                with self._folder_of(record.path) as (folder, name):
                    folder.give_mode(name, before.mode & ~(0o002 & ~current.mode))
            return True
        if current is not None and (after is None or not after.matches(current)):
            return False
        if current is None and after is not None:
            return False
        if before is not None and not self._is_staged(before.blob):
            raise ConflictError(f"{self.state / STAGED} is incomplete: {record.path} cannot be restored from it")
        self._put(record.path, before)
        return True

    def _is_staged(self, blob: str) -> bool:
        with contextlib.suppress(FileNotFoundError), opened(self.state / STAGED) as staged:
            return staged.lstat(blob) is not None
        return False

    def _current(self, path: str, *, clear: bool = False) -> journals.FileState | None:
        """The file at `path` as it is. clear: without the temporary files that a killed process has left of it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._folder_of(path) as (folder, name):
            if clear:
                clear_leftovers(folder, name)
            return state_in(folder, name)
        return None

    @contextlib.contextmanager
    def _folder_of(self, path: str) -> Iterator[tuple[Folder, str]]:
        """The open folder in which `path` lies, and its name there. Raises ConflictError where that is outside."""
        where, name = real_inside(self.root, path)
        with opened(where) as folder:
            yield folder, name

    def _clear(self) -> None:
        """Remove what only a running transaction needs, and the state folder itself when nothing else is in it."""
        with contextlib.suppress(FileNotFoundError), opened(self.root) as root:
            with root.entered(STATE_FOLDER) as state:
                crossed("before clearing")
                state.remove_tree(STAGED)
                crossed("staged files cleared")
                for left in state.names():
                    if left.startswith(".") and left.endswith(TEMPORARY_SUFFIX):
                        state.unlink(left, missing_ok=True)
                state.unlink(DONE, missing_ok=True)
                crossed("journal cleared")
                if {*state.names()} <= {SELF_IGNORE, MEASUREMENTS}:  # what runs have measured goes with the last record
                    state.unlink(MEASUREMENTS, missing_ok=True)
                    state.unlink(SELF_IGNORE, missing_ok=True)
                    crossed("ignore file cleared")
            with contextlib.suppress(OSError):
                root.rmdir(STATE_FOLDER)
            root.sync()

    def _remove_empty(self, folders: Sequence[str]) -> None:
        for path in reversed(folders):
            with contextlib.suppress(OSError), self._folder_of(path) as (folder, name):
                folder.rmdir(name)
            crossed(f"folder {path} seen to")

    def _sync_touched(self) -> None:
        for path in self._touched:
            with contextlib.suppress(FileNotFoundError), opened(path) as folder:
                folder.sync()
        self._touched.clear()

    def _make_parents(self, path: str) -> None:
        for parent in reversed(Path(path).parents[:-1]):
            with self._folder_of(parent.as_posix()) as (folder, name):
                if folder.lstat(name) is None:
                    self._make_folder(folder, name)

    @staticmethod
    def _make_folder(folder: Folder, name: str) -> None:
        if folder.lstat(name) is not None:
            return
        folder.make_folder(name, folder.owner())
        folder.sync()
        crossed(f"made folder {name}")

    def _require(self, path: str, expected: journals.FileState | None) -> None:
        found = self._current(path)
        if (found and found.data) != (expected and expected.data):
            raise ConflictError(
                f"{path} was changed by another program just now; nothing was changed by kohya_ext. Run again"
            )

    def _verify(self, change: Change) -> None:
        found = self._current(change.path)
        wanted = change.after
        same = (found and found.data) == (wanted and wanted.data)
        # a mode other than before is the file system's to grant (vfat, NTFS, a Windows)
        if found and wanted and change.before and change.before.mode == wanted.mode:
            same = same and found.mode == wanted.mode
        if not same:
            raise ConflictError(f"{change.path} does not contain what was written; everything was rolled back")

    def _operation(self, effect: Effect) -> Operation:
        if effect.name not in self.operations:
            raise ConflictError(
                f"the journal in {self.state} holds an unknown step {effect.name!r}; use the newer kohya_ext"
            )
        return self.operations[effect.name]


def _remains(names: Sequence[str]) -> bool:
    return STAGED in names or any(name.endswith(TEMPORARY_SUFFIX) for name in names)
