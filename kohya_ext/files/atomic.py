"""Writing a file so that a reader sees either the old one or the new one, whole, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path

from kohya_ext.files.boundary import crossed

Owner = tuple[int, int]

TEMPORARY_SUFFIX = ".kohya_ext-tmp"
NEW_FILE_MODE = 0o644


def sha256(data: bytes) -> str:
    """Hexadecimal digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def temporary_name(path: Path) -> Path:
    """The name under which `path` is written before it gets its own: the same each time, so it can be cleared."""
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


def write_atomic(path: Path, data: bytes, *, mode: int | None = None, owner: Owner | None = None) -> None:
    """Replace `path` by `data`, or leave it untouched.

    mode: permission bits; None keeps those of the file that is there, 0644 for a new one.
    owner: user and group id, set as far as this user may; None keeps the owner, a new file gets its folder's.
    Raises OSError; the temporary file is gone then.
    """
    temporary = temporary_name(path)
    crossed(f"before writing {path.name}")
    try:
        write_new(temporary, data, mode=_mode_for(path) if mode is None else mode, owner=owner or owner_for(path))
        sync_file(temporary)
        crossed(f"before renaming to {path.name}")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    crossed(f"after writing {path.name}")


def write_new(path: Path, data: bytes, *, mode: int, owner: Owner | None) -> None:
    """Write `path`, not atomically: for files nobody looks for yet. `sync_file` waits for the disk. Raises OSError."""
    path.unlink(missing_ok=True)  # never through a link or into a file that something else shares
    path.open("xb").close()
    path.write_bytes(data)
    take_owner(path, owner)
    path.chmod(mode)


def sync_file(path: Path) -> None:
    """Wait until the disk has the bytes of `path`. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def owner_for(path: Path) -> Owner | None:
    """Who should own `path`: its owner when it exists, else its folder's. None where the system knows no owners."""
    if not hasattr(os, "chown"):
        return None
    with contextlib.suppress(OSError):
        found = path.lstat()
        return found.st_uid, found.st_gid
    found = path.parent.stat()
    return found.st_uid, found.st_gid


def take_owner(path: Path, owner: Owner | None) -> None:
    """Give `path` to `owner` as far as this user may: root may always, others only choose among their groups."""
    if owner is None or not hasattr(os, "chown"):
        return
    found = path.lstat()
    for uid, gid in ((owner[0], -1), (-1, owner[1])):
        if uid in (-1, found.st_uid) and gid in (-1, found.st_gid):
            continue
        with contextlib.suppress(PermissionError):
            os.chown(path, uid, gid, follow_symlinks=False)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`. Where folders cannot be opened (Windows), nothing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _mode_for(path: Path) -> int:
    with contextlib.suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    return NEW_FILE_MODE
