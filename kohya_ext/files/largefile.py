"""Large files: refused early when they cannot be written, and what the disk says, with the cure, when it does late."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.errors import ConflictError, UsageError


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError of the disk that holds `path` into a ConflictError that says the cure."""
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
        raise UsageError(f"the folder {path.parent} does not exist; make it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConflictError(f"{path} exists; give --overwrite to replace it, or another name. Nothing was written")
