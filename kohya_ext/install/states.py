"""In which state a file is that we patch, or would: upstream's, ours, or somebody's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kohya_ext.checkout import git
from kohya_ext.core import shell
from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.files.atomic import sha256
from kohya_ext.files.journal import FileState, read_state
from kohya_ext.files.regular import toml_loads
from kohya_ext.files.text_encoding import TextForm, same_text
from kohya_ext.install.manifest import ManifestEntry
from kohya_ext.install.patchset import MARKER, PatchTarget, unpatched


class State(str, Enum):
    """pristine: upstream's. ours: as we wrote it. unrecorded: ours, but the manifest knows nothing of it. edited: ours,
    then changed by somebody. foreign: neither upstream's nor ours. missing: not there. damaged, stale: of presets only,
    those that hold no settings any more, and those that were fitted to another release.
    """

    PRISTINE = "pristine"
    OURS = "ours"
    UNRECORDED = "unrecorded"
    EDITED = "edited"
    FOREIGN = "foreign"
    MISSING = "missing"
    DAMAGED = "damaged"
    STALE = "stale"


@dataclass(frozen=True)
class Inspected:
    """A file that we patch or have patched. head: what git has in HEAD, None when it cannot say."""

    path: str
    file: FileState | None
    state: State
    head: bytes | None

    @property
    def data(self) -> bytes:
        """The bytes of the file, which must be there."""
        assert self.file is not None
        return self.file.data


def inspect(
    root: Path,
    path: str,
    entry: ManifestEntry | None,
    target: PatchTarget | None = None,
    heads: Mapping[Path, bytes] | None = None,
) -> Inspected:
    """Look at the file `path` (relative to `root`). heads: what git has of it and others, when that was asked before.

    entry: what the manifest says of it. target: the rule that would patch it; where git cannot tell whether the file is
    upstream's, the anchor of the rule decides.
    """
    file = read_state(root / path)
    head = (git.head_blobs([root / path]) if heads is None else heads).get(root / path)
    if file is None:
        return Inspected(path, None, State.MISSING, head)
    return Inspected(path, file, _state(file.data, head, entry, target), head)


def _state(data: bytes, head: bytes | None, entry: ManifestEntry | None, target: PatchTarget | None) -> State:
    if entry is not None and sha256(data) == entry.sha256_after:
        return State.OURS
    if MARKER in data:
        if entry is None and unpatched(data, head=head) is not None:
            return State.UNRECORDED
        return State.EDITED
    if entry is not None and sha256(data) == entry.sha256_before:
        return State.PRISTINE
    if head is not None:
        return State.PRISTINE if same_text(data, head) else State.FOREIGN
    fits = target is not None and entry is None and target.fits(data)
    return State.PRISTINE if fits else State.FOREIGN


def original(root: Path, seen: Inspected, entry: ManifestEntry) -> bytes:
    """What a file of ours was before: the verified backup, or what git has now if the release under it has changed.

    Raises ConflictError when the backup is damaged.
    """
    backup = read_state(root / entry.backup) if entry.backup else None
    if backup is None or sha256(backup.data) != entry.sha256_before:
        raise ConflictError(
            f"the backup of {seen.path} ({root / str(entry.backup)}) is {'missing' if backup is None else 'damaged'}, "
            "so the original cannot be restored from it; nothing was changed. "
            f"{how_to_restore(root, seen.path)}"
        )
    if seen.head is None or same_text(backup.data, seen.head):
        return backup.data
    if TextForm.of(backup.data).newline == "\r\n" and b"\r\n" not in seen.head:
        return seen.head.replace(b"\n", b"\r\n")
    return seen.head


def is_blank(data: bytes) -> bool:
    """Whether nothing is in `data` that could be lost: what a crash of the machine leaves of a file."""
    return not data.strip(b"\0 \t\r\n")


def is_damaged_preset(data: bytes, path: str) -> bool:
    """Whether `data` is not what a preset file of this name holds: empty, cut off or overwritten.

    Nobody's edit of a preset ends like that.
    """
    try:
        if path.endswith(".toml"):
            return not toml_loads(data.decode())
        return not isinstance(json.loads(data), dict)
    except UsageError:  # nothing here reads TOML
        return False
    except (ValueError, RecursionError):
        return True


def how_to_restore(root: Path, path: str) -> str:
    """What to do to have upstream's version of `path` again."""
    restore = git_restore(root, path)
    return f"Restore it: {restore}" if restore else f"Copy {path} from the same release: this is not a git repository"


def git_restore(root: Path, path: str) -> str | None:
    """The command that brings back git's version of `path`, also under the skip-worktree flag; None without git."""
    folder = git.work_tree((root / path).parent)
    if folder is None:
        return None
    file = shell.quoted((root / path).relative_to(folder).as_posix())
    return f"git -C {shell.quoted(folder)} checkout --ignore-skip-worktree-bits -- {file}"
