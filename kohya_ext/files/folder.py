"""A folder held open, in which files are reached by their bare names: no link put in the way leads elsewhere.

Whoever may write in a folder may at any moment swap a name in it for a link. A path is looked up again by each call, so
between two calls it may come to mean another file, and root would write, or give away, what it never meant to. Here
every folder from the top down is opened without following links, and all that happens in it goes through its
descriptor. Where the system has no such calls (Windows), paths are used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kohya_ext.files.regular import read_up_to

Owner = tuple[int, int]

LARGEST = 1 << 28  # bytes of a file that is read as a whole; what we read so has some kilobytes
PERMISSIONS = 0o777  # no set-user-id, set-group-id or sticky bit is ever set or given back

_BY_DESCRIPTOR = {os.open, os.rename, os.unlink, os.mkdir, os.rmdir, os.stat} <= os.supports_dir_fd and hasattr(
    os, "O_NOFOLLOW"
)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # a FIFO or a terminal must not hold us up
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE |= getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_PASS = _FOLDER | getattr(os, "O_PATH", 0)  # passing through needs no right to read
_CANNOT_SYNC = (errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP)
# Windows refuses to rename or remove what another program has open, mostly for the blink of an eye: a virus scanner, an
# indexer. Access denied (5) can mean the same, and does where a file that is being removed is still open.
_IN_USE = (5, 32, 33)
_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds
_NAME_SURROGATE = 0x20000000  # the bit of a reparse tag that says: this name stands for another
_TRIES = 100  # names that somebody else may take before us


class NotRegularError(OSError):
    """A link, folder, pipe or device where a file is expected."""


class Folder:
    """An open folder; `opened` makes one. All names are bare names in it, and none is followed if it is a link."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor

    def lstat(self, name: str) -> os.stat_result | None:
        """What `name` is, None where there is nothing of that name."""
        with self._telling(name), contextlib.suppress(FileNotFoundError):
            where, given = self._at(name)
            return os.stat(where, follow_symlinks=False, **given)  # noqa: PTH116
        return None

    def names(self) -> list[str]:
        """What is in it, sorted. Raises OSError."""
        with self._telling():
            return sorted(os.listdir(self.path if self._descriptor is None else self._descriptor))  # noqa: PTH208

    def read(self, name: str) -> tuple[bytes, os.stat_result] | None:
        """The bytes of a regular file and what it is, by one descriptor; None where there is nothing of that name.

        Raises NotRegularError; OSError, also for a file larger than LARGEST.
        """
        with self._telling(name):
            found = self.lstat(name)
            if found is None:
                return None
            _require_regular(found, self.path / name)
            try:
                descriptor = self._open(name, _READ)
            except FileNotFoundError:
                return None
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
                found = os.fstat(descriptor)
                _require_regular(found, self.path / name)
                self._require_ours(found, name)
                data = read_up_to(file, LARGEST + 1)
            if len(data) > LARGEST:
                raise OSError(errno.EFBIG, f"has more than {LARGEST} bytes", str(self.path / name))
            return data, found

    def create(self, name: str) -> int:
        """A new, empty file that only this user may open; its descriptor. Raises OSError, FileExistsError too."""
        with self._telling(name):
            return self._open(name, _CREATE, 0o600)

    def create_unguessable(self, pattern: str) -> tuple[str, int]:
        """A new file as `create` makes it, named `pattern` with its `*` replaced; its name and descriptor."""
        for _ in range(_TRIES):
            name = pattern.replace("*", secrets.token_hex(8))
            with contextlib.suppress(FileExistsError):
                return name, self.create(name)
        raise FileExistsError(errno.EEXIST, "no free name", str(self.path / pattern))

    def replace(self, name: str, target: Folder, new_name: str) -> None:
        """Move the file `name` to `new_name` in `target`, in place of what is there. Raises OSError."""
        with target._telling(new_name):
            where, given = self._at(name)
            goal, also = target._at(new_name)
            if given:
                os.replace(where, goal, src_dir_fd=given["dir_fd"], dst_dir_fd=also["dir_fd"])
            else:
                _insisting(lambda: os.replace(where, goal))  # noqa: PTH105

    def unlink(self, name: str, *, missing_ok: bool = False, insist: bool = True) -> None:
        """Remove the file or link `name`. insist: wait for another program that has it open. Raises OSError."""
        with self._telling(name):
            where, given = self._at(name)
            try:
                if insist:
                    _insisting(lambda: os.unlink(where, **given))
                else:
                    os.unlink(where, **given)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def rmdir(self, name: str) -> None:
        """Remove the empty folder `name`. Raises OSError."""
        with self._telling(name):
            where, given = self._at(name)
            _insisting(lambda: os.rmdir(where, **given))

    def make_folder(self, name: str, owner: Owner | None) -> None:
        """A new folder with the rights that this one gives, the public one to write aside. Raises OSError."""
        with self._telling(name):
            where, given = self._at(name)
            os.mkdir(where, 0o700 if self._descriptor is not None else 0o777, **given)  # noqa: PTH102
            if self._descriptor is None:
                return
            descriptor = self._open(name, _FOLDER)
            try:
                made, mine = os.fstat(descriptor), os.fstat(self._descriptor)
                if made.st_uid != os.geteuid() or os.listdir(descriptor):  # noqa: PTH208
                    raise OSError(errno.EBUSY, "was replaced with another folder just now", str(self.path / name))
                mode = mine.st_mode & PERMISSIONS & ~0o002 | stat.S_IRWXU
                give(descriptor, owner, mode | made.st_mode & stat.S_ISGID)
            finally:
                os.close(descriptor)

    def remove_tree(self, name: str) -> None:
        """Remove `name` with all that is in it; nothing when there is no such name. Raises OSError."""
        found = self.lstat(name)
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode) or is_link(found):
            self.unlink(name, missing_ok=True)
            return
        with self.entered(name) as inner:
            for entry in inner.names():
                inner.remove_tree(entry)
        self.rmdir(name)

    @contextlib.contextmanager
    def entered(self, name: str) -> Iterator[Folder]:
        """The folder `name` in this one. Raises OSError where it is a link."""
        with self._telling(name):
            if self._descriptor is None:
                inner = Folder(self.path / name, None)
                _require_folder(inner.path)
            else:
                inner = Folder(self.path / name, _open_folder(name, self._descriptor))
        with _closing(inner):
            yield inner

    def sync(self) -> None:
        """Wait until the disk has the names in it. Where folders cannot be opened (Windows), nothing."""
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise

    def stat(self) -> os.stat_result:
        """What this folder is. Raises OSError."""
        return os.stat(self.path) if self._descriptor is None else os.fstat(self._descriptor)  # noqa: PTH116

    def owner(self) -> Owner | None:
        """Who owns it. None where the system knows no owners."""
        found = self.stat()
        return (found.st_uid, found.st_gid) if hasattr(os, "chown") else None

    def give(self, owner: Owner | None) -> None:
        """Make it the owner's, as far as this user may."""
        if self._descriptor is not None:
            give(self._descriptor, owner, stat.S_IMODE(self.stat().st_mode))

    def give_mode(self, name: str, mode: int) -> None:
        """Give the regular file `name` these permissions, where it has others."""
        found = self.lstat(name)
        if found is None or stat.S_IMODE(found.st_mode) == mode & PERMISSIONS:
            return
        descriptor = self.open_file(name)
        try:
            give(descriptor, None, mode & PERMISSIONS)
        finally:
            os.close(descriptor)

    def open_file(self, name: str, *, writing: bool = False) -> int:
        """A descriptor of the regular file `name`, to be closed by the caller. Raises NotRegularError, OSError."""
        with self._telling(name):
            descriptor = self._open(name, _READ | os.O_RDWR if writing else _READ)
            try:
                _require_regular(os.fstat(descriptor), self.path / name)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

    def _open(self, name: str, flags: int, mode: int = 0o600) -> int:
        where, given = self._at(name)
        return os.open(where, flags, mode, **given)

    def _at(self, name: str) -> tuple[str, dict[str, Any]]:
        if not name or name in (os.curdir, os.pardir) or {"/", "\0", os.sep} & {*name}:
            raise OSError(errno.EINVAL, f"{name!r} is not a bare name", str(self.path))
        if self._descriptor is None:
            return str(self.path / name), {}
        return name, {"dir_fd": self._descriptor}

    def _require_ours(self, found: os.stat_result, name: str) -> None:
        """As root, refuse a second name of a file that belongs to somebody else than the folder."""
        if self._descriptor is None or os.geteuid() != 0 or found.st_nlink < 2:
            return
        folder_owner = os.fstat(self._descriptor).st_uid
        if folder_owner not in (0, found.st_uid):
            raise NotRegularError(
                errno.EPERM, "is a hard link to a file of another user: replace it with a copy", str(self.path / name)
            )

    @contextlib.contextmanager
    def _telling(self, name: str = "") -> Iterator[None]:
        """Errors name the whole path, not the bare name."""
        try:
            yield
        except OSError as error:
            if error.filename is None or not os.path.isabs(os.fspath(error.filename)):  # noqa: PTH117
                error.filename = str(self.path / name)
            raise


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Folder]:
    """The folder `path`, which must be absolute and without links in it (`Path.resolve` gives such a path).

    Raises OSError: a link on the way has come there since.
    """
    if not path.is_absolute():
        raise OSError(errno.EINVAL, "is not an absolute path", str(path))
    if not _BY_DESCRIPTOR:
        _require_folder(path)
        yield Folder(path, None)
        return
    with _closing(Folder(path, _walk(path))) as folder:
        yield folder


def is_link(found: os.stat_result) -> bool:
    """Whether what lstat has found leads elsewhere: a link, on Windows also a junction, which calls itself a folder."""
    return stat.S_ISLNK(found.st_mode) or bool(getattr(found, "st_reparse_tag", 0) & _NAME_SURROGATE)


def leads_elsewhere(path: Path) -> bool:
    """Whether `path` itself is a link or a junction; False where there is nothing, or where this user may not look."""
    try:
        return is_link(path.lstat())
    except OSError:
        return False


def in_use(error: OSError) -> bool:
    """Whether Windows refuses because another program has the file open (or, with access denied, may have)."""
    return getattr(error, "winerror", None) in _IN_USE


def _insisting(action: Callable[[], None]) -> None:
    """Do it, again and again for some seconds while another program has the file open. Raises OSError."""
    for wait in _WAITS:
        try:
            return action()
        except OSError as error:
            if not in_use(error):
                raise
        time.sleep(wait)
    return action()


def give(descriptor: int, owner: Owner | None, mode: int) -> None:
    """Give what is open as `descriptor` this `mode` and, as far as this user may, this `owner`."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(PermissionError):  # the mode is the file system's to choose (vfat, NTFS)
            os.fchmod(descriptor, mode)
    if owner is None or not hasattr(os, "fchown"):
        return
    found = os.fstat(descriptor)
    for uid, gid in ((owner[0], -1), (-1, owner[1])):
        if uid in (-1, found.st_uid) and gid in (-1, found.st_gid):
            continue
        with contextlib.suppress(PermissionError):  # root may always, others only choose among their groups
            os.fchown(descriptor, uid, gid)


def _walk(path: Path) -> int:
    parts = path.parts
    descriptor = os.open(parts[0], _PASS if len(parts) > 1 else _FOLDER)
    for number, part in enumerate(parts[1:], 2):
        try:
            inner = _open_folder(part, descriptor, last=number == len(parts))
        except OSError as error:
            error.filename = str(Path(*parts[:number]))
            raise
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _open_folder(name: str, parent: int, *, last: bool = True) -> int:
    try:
        return os.open(name, _FOLDER if last else _PASS, dir_fd=parent)
    except PermissionError:
        if not last or _PASS == _FOLDER:
            raise
        return os.open(name, _PASS, dir_fd=parent)  # may be passed, not read: names in it that are known can be used
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            what = "is a link" if stat.S_ISLNK(found.st_mode) else "is not a folder"
            raise NotADirectoryError(errno.ENOTDIR, what, name) from error
        raise


@contextlib.contextmanager
def _closing(folder: Folder) -> Iterator[Folder]:
    try:
        yield folder
    finally:
        if folder._descriptor is not None:
            os.close(folder._descriptor)


def _require_folder(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or is_link(found):
        what = "is a link" if is_link(found) else "is not a folder"
        raise NotADirectoryError(errno.ENOTDIR, what, str(path))


def _require_regular(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotRegularError(errno.EINVAL, "is a link or a folder where a file is expected", str(path))
