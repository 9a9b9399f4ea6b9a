"""One installer at a time in a checkout, without a lock file that could be left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.errors import ConflictError

if sys.platform != "win32":
    import fcntl

POLL_SECONDS = 0.05
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems


# To be handed on to child processes that change something: the lock then lasts until they have ended too, so that
# nobody takes back what a killed installer did while its child is still at it.
held: set[int] = set()

_mine: set[Path] = set()  # the folders whose lock this process holds


@contextlib.contextmanager
def locked(root: Path, wait_seconds: float = 30.0) -> Iterator[None]:
    """Hold the lock of the folder `root`; it goes with the process, also when that is killed.

    A verb made of others (an update) holds it around them: whoever holds it gets it at once.
    Raises ConflictError when another process still holds it after `wait_seconds`.
    """
    if sys.platform == "win32":  # cannot lock a folder: there, two installers at once are not kept apart
        yield
        return
    root = root.resolve()
    if root in _mine:
        yield
        return
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConflictError(f"{root} cannot be opened: {error.strerror}; run as the user that owns it") from error
    try:
        _acquire(descriptor, root, wait_seconds)
        held.add(descriptor)
        _mine.add(root)
        try:
            yield
        finally:
            _mine.discard(root)
    finally:
        held.discard(descriptor)
        os.close(descriptor)


def _acquire(descriptor: int, root: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while not _try(descriptor):
        if time.monotonic() >= deadline:
            raise ConflictError(
                f"another kohya-ext is at work in {root}; nothing was changed. Run again when it has finished"
            )
        time.sleep(POLL_SECONDS)


def _try(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    return True
