"""What the disk says, with the fix: when files of a tree cannot be written, and before and while large ones are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kohya_ext.core import shell
from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.files.folder import in_use
from kohya_ext.files.regular import open_regular

_BLOCK = 1 << 22  # bytes read at a time


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn an OSError of a command that changes `root` into a ConflictError that says the cause and the fix."""
    try:
        yield
    except OSError as error:
        raise ConflictError(f"{reason(error, root)}. Nothing was changed") from error


def reason(error: OSError, root: Path) -> str:
    """Why a file below `root` could not be written, and the fix."""
    where = error.filename2 or error.filename or root
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk (or quota) that holds {root}: free some and run again"
    if in_use(error):
        return (
            f"{where} is open in another program, or may not be written: close Kohya, editors, terminals and run again"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission to write {where}: {shell.more_rights()}"
    if error.errno == errno.EROFS:
        return f"{where} lies on a read-only file system: mount it writable and run again"
    return f"{where}: {error.strerror or error}"


@contextlib.contextmanager
def explained_target(path: Path) -> Iterator[None]:
    """Turn an OSError of the disk that holds `path` into a ConflictError that says the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause = "no space left: the file and a scratch file of the same size must fit. Free some"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            cause = "no permission to write there: choose another place"
        else:
            cause = error.strerror or str(error)
        raise ConflictError(f"{path} cannot be written: {cause}. Nothing was written") from error


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse early what could only fail after minutes of work. Raises UsageError, ConflictError."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: the new file's name must end in .safetensors")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConflictError(f"{path} exists; give --overwrite to replace it, or another name. Nothing was written")


def sha256_of(path: Path, progress: Callable[[int, int], None] = lambda *_: None) -> str:
    """Hexadecimal digest of a file of any size. progress: is told (bytes done, bytes in total). Raises UsageError."""
    digest, done = hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                progress(done, total)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
