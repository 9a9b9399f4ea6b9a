"""Writing a file so that a reader sees either the old one or the new one, whole, whatever happens in between.

A file is made under a name that nobody can guess, by one descriptor that also takes its mode, its owner and its way to
the disk, and is then renamed. So nobody who may write in its folder can lead the writer to another file (`folder`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

from kohya_ext.files.faultpoints import crossed
from kohya_ext.files.folder import PERMISSIONS, Folder, NotRegularError, Owner, give, opened

if sys.platform != "win32":
    import fcntl

__all__ = [
    "NEW_FILE_MODE",
    "TEMPORARY_SUFFIX",
    "Owner",
    "clear_leftovers",
    "give_tree",
    "owner_for",
    "replacing",
    "scratch",
    "sha256",
    "sync_folder",
    "write_atomic",
    "write_into",
    "write_new",
]

TEMPORARY_SUFFIX = ".kohya_ext-tmp"
NEW_FILE_MODE = 0o644
_LONGEST_STEM = 200  # bytes of a name that its temporary name repeats; 255 is the most that file systems take


def sha256(data: bytes) -> str:
    """Hexadecimal digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: Path, data: bytes, *, mode: int | None = None, owner: Owner | None = None) -> None:
    """Replace `path` by `data`, or leave it untouched. A link of that name is replaced, not followed.

    mode: permission bits; None keeps those of the file that is there, 0644 for a new one.
    owner: user and group id, set as far as this user may; None keeps the owner, a new file gets its folder's.
    Raises OSError; the temporary file is gone then.
    """
    with opened(path.parent.resolve()) as folder:
        write_into(folder, path.name, data, mode=mode, owner=owner)


def write_into(folder: Folder, name: str, data: bytes, *, mode: int | None = None, owner: Owner | None = None) -> None:
    """`write_atomic` of the file `name` in an open folder."""
    with _replacing(folder, name, mode, owner) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int | None = None, owner: Owner | None = None) -> Iterator[BufferedRandom]:
    """A file to write and read, as large as need be, that becomes `path` when the block ends without an exception.

    The arguments are `write_atomic`'s. Raises OSError; nothing is left behind then.
    """
    with opened(path.parent.resolve()) as folder, _replacing(folder, path.name, mode, owner) as file:
        yield file


@contextlib.contextmanager
def scratch(beside: Path) -> Iterator[BufferedRandom]:
    """An empty file to write and read next to `beside`, on the same disk, that is gone when the block ends."""
    with opened(beside.parent.resolve()) as folder:
        clear_leftovers(folder, beside.name)
        name, descriptor = _temporary(folder, beside.name)
        try:
            with open(descriptor, "w+b") as file:  # noqa: PTH123 - a descriptor
                yield file
        finally:
            with contextlib.suppress(OSError):
                folder.unlink(name, missing_ok=True)


def write_new(folder: Folder, name: str, data: bytes, *, mode: int, owner: Owner | None) -> None:
    """Write `name`, not atomically: for files nobody looks for yet. The disk has its bytes then. Raises OSError."""
    folder.unlink(name, missing_ok=True)
    with open(folder.create(name), "w+b") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
        _finish(file, mode, owner)


def clear_leftovers(folder: Folder, name: str) -> None:
    """Remove the temporary files that killed writers of `name` have left: those that no living one holds a lock of."""
    start, end = _pattern(name).split("*")
    try:
        names = folder.names()
    except OSError:  # may be written, but not listed
        return
    for left in names:
        if left.startswith(start) and left.endswith(end):
            with contextlib.suppress(OSError):
                _clear_leftover(folder, left)


def owner_for(path: Path) -> Owner | None:
    """Who should own `path`: its owner when it exists, else its folder's. None where the system knows no owners."""
    if not hasattr(os, "chown"):
        return None
    with contextlib.suppress(OSError):
        found = path.lstat()
        return found.st_uid, found.st_gid
    found = path.parent.stat()
    return found.st_uid, found.st_gid


def give_tree(path: Path, owner: Owner | None) -> None:
    """Give what this user has made at `path`, a file or a folder with all that is in it, to `owner`.

    Files of others, second names and links stay as they are. Raises OSError where a link is on the way to `path`.
    """
    if owner is None or not hasattr(os, "chown") or owner[0] == os.geteuid():
        return
    with opened(path.parent) as folder:
        _give_entry(folder, path.name, owner)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`. Where folders cannot be opened (Windows), nothing."""
    with contextlib.suppress(PermissionError), opened(folder.resolve()) as found:
        found.sync()


@contextlib.contextmanager
def _replacing(folder: Folder, name: str, mode: int | None, owner: Owner | None) -> Iterator[BufferedRandom]:
    crossed(f"before writing {name}")
    before = folder.lstat(name)
    if before is not None and not stat.S_ISREG(before.st_mode):
        before = None
    if mode is None:
        mode = NEW_FILE_MODE if before is None else before.st_mode & PERMISSIONS
    if owner is None and hasattr(os, "chown"):
        owner = folder.owner() if before is None else (before.st_uid, before.st_gid)
    clear_leftovers(folder, name)
    temporary, descriptor = _temporary(folder, name)
    try:
        with open(descriptor, "w+b") as file:  # noqa: PTH123 - a descriptor
            yield file
            _finish(file, mode, owner)
            crossed(f"before renaming to {name}")
            if os.name == "posix":  # still locked: nobody takes it for a leftover
                folder.replace(temporary, folder, name)
        if os.name != "posix":  # an open file has no other name there
            folder.replace(temporary, folder, name)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.unlink(temporary, missing_ok=True)
        raise
    folder.sync()
    crossed(f"after writing {name}")


def _finish(file: BufferedRandom, mode: int, owner: Owner | None) -> None:
    file.flush()
    give(file.fileno(), owner, mode & PERMISSIONS)
    os.fsync(file.fileno())


def _temporary(folder: Folder, name: str) -> tuple[str, int]:
    """A new file to become `name`, locked as long as it is open; its name and descriptor."""
    while True:
        temporary, descriptor = folder.create_unguessable(_pattern(name))
        try:
            _lock(descriptor)
            if os.name != "posix" or os.fstat(descriptor).st_nlink:
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # taken for a leftover before it was locked


def _pattern(name: str) -> str:
    """What temporary files of `name` are called: a star stands for what nobody can guess."""
    raw = os.fsencode(name)
    stem = name if len(raw) <= _LONGEST_STEM else sha256(raw)
    return f".{stem.replace('*', '_')}.*{TEMPORARY_SUFFIX}"


def _clear_leftover(folder: Folder, name: str) -> None:
    found = folder.lstat(name)
    if found is None or (hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), folder.stat().st_uid)):
        return
    if stat.S_ISLNK(found.st_mode):  # put in the way of a writer; we make none
        folder.unlink(name, missing_ok=True)
    if not stat.S_ISREG(found.st_mode):
        return
    if sys.platform == "win32":  # what is open there cannot be removed, by its writer or, to be locked, by us
        folder.unlink(name, missing_ok=True, insist=False)
        return
    descriptor = folder.open_file(name)
    try:
        if _lock(descriptor):
            folder.unlink(name, missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file; False where another process has done so, or nothing can be locked."""
    if sys.platform == "win32":  # what is open there cannot be removed
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _give_entry(folder: Folder, name: str, owner: Owner) -> None:
    found = folder.lstat(name)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        with folder.entered(name) as inner:
            for entry in inner.names():
                _give_entry(inner, entry, owner)
            inner.give(owner)
    elif stat.S_ISREG(found.st_mode):
        with contextlib.suppress(NotRegularError):
            _give_file(folder.open_file(name), owner)


def _give_file(descriptor: int, owner: Owner) -> None:
    try:
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and found.st_nlink == 1:
            give(descriptor, owner, found.st_mode & PERMISSIONS)
    finally:
        os.close(descriptor)
