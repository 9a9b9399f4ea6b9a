"""One installer at a time in a checkout, without a lock file that could be left behind.

POSIX: a lock on the open folder. Windows: a kernel object with a name made from the folder's identity; there it is the
object's existence that locks, so that inheriting its handle holds it as well, just as with the open folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kohya_ext.core.errors import ConflictError

if sys.platform == "win32":
    import ctypes
else:
    import fcntl

POLL_SECONDS = 0.05
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems
_ALREADY_EXISTS = 183  # of GetLastError
_ACCESS_DENIED = 5


_held: set[int] = set()  # descriptors of folders, on Windows handles of the named objects
_mine: set[str] = set()  # the folders whose lock this process holds


def handed_on() -> dict[str, Any]:
    """Arguments of `subprocess` for a child that changes something: it holds our locks as well.

    They then last until it has ended too, so that nobody takes back what a killed installer did while its child is
    still at it.
    """
    if sys.platform == "win32":
        inherited = subprocess.STARTUPINFO(lpAttributeList={"handle_list": list(_held)})
        return {"startupinfo": inherited} if _held else {}
    else:
        return {"pass_fds": tuple(_held)}


@contextlib.contextmanager
def locked(root: Path, wait_seconds: float = 30.0) -> Iterator[None]:
    """Hold the lock of the folder `root`; it goes with the process, also when that is killed.

    A verb made of others (an update) holds it around them: whoever holds it gets it at once.
    Raises ConflictError when another process still holds it after `wait_seconds`.
    """
    try:
        root = root.resolve()
        folder = _identity(root)
        taken = None if folder in _mine else _acquire(root, folder, wait_seconds)
    except OSError as error:
        raise ConflictError(f"{root} cannot be opened: {error.strerror}; run as the user that owns it") from error
    if taken is None:
        yield
        return
    _held.add(taken)
    _mine.add(folder)
    try:
        yield
    finally:
        _mine.discard(folder)
        _held.discard(taken)
        _release(taken)


def _acquire(root: Path, folder: str, wait_seconds: float) -> int:
    deadline = time.monotonic() + wait_seconds
    while (taken := _try(root, folder)) is None:
        if time.monotonic() >= deadline:
            raise ConflictError(
                f"another kohya-ext is running in {root}; nothing was changed. Run again when it has finished"
            )
        time.sleep(POLL_SECONDS)
    return taken


if sys.platform == "win32":
    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.CreateMutexW.restype = ctypes.c_void_p
    _kernel.CreateMutexW.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_wchar_p)
    _kernel.CloseHandle.argtypes = (ctypes.c_void_p,)

    def _identity(root: Path) -> str:
        """The same for every way to write the folder's path: case, short names, junctions, mapped drives."""
        found = root.stat()
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
        if found.st_ino:
            return f"{found.st_dev}:{found.st_ino}"
        return os.path.normcase(root)  # some network file systems number nothing

    def _try(root: Path, folder: str) -> int | None:
        """The handle of the object that stands for the lock, None where somebody else has made it."""
        name = f"Global\\kohya_ext-{hashlib.sha256(folder.encode('utf-8', 'surrogatepass')).hexdigest()}"
        handle = _kernel.CreateMutexW(None, False, name)
        reason = ctypes.get_last_error()
        if not handle:
            if reason == _ACCESS_DENIED:  # made by another user
                return None
            raise ctypes.WinError(reason)
        if reason == _ALREADY_EXISTS:
            _release(handle)
            return None
        os.set_handle_inheritable(handle, True)
        return int(handle)

    def _release(taken: int) -> None:
        _kernel.CloseHandle(taken)

else:

    def _identity(root: Path) -> str:
        return str(root)

    def _try(root: Path, folder: str) -> int | None:
        """The open folder once it is locked, None where somebody else has locked it."""
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
        return descriptor

    def _release(taken: int) -> None:
        os.close(taken)
