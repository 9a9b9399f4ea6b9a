"""Reading what a user or a checkout names: regular files only, and no more of them than makes sense.

A path may lead to a FIFO, which blocks for ever, to a device, which never ends, or to a file of gigabytes under the
name of a preset. Nothing is read of the first two, and of the last no more than the limit. Links are followed: these
are the user's own files (what is written goes through `folder`, which follows none).
"""

from __future__ import annotations

import errno
import importlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from kohya_ext.core.errors import UsageError

MODULE_LIMIT = 8 << 20  # bytes; the largest module of any Kohya release has 0.4 MB
TEXT_LIMIT = 8 << 20  # bytes; of prompts, change logs, requirements, settings
JSON_LIMIT = 64 << 20  # bytes; the index of a sharded model has a few hundred kB
_PIECE = 1 << 18  # bytes

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FLAGS |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISDIR, "is a folder, a file is needed here"),
    (stat.S_ISFIFO, "is a pipe, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
)


class NotReadableError(UsageError):
    """There is no such file, it is not a regular one, or it cannot be read."""


class TooLargeError(NotReadableError):
    """The file is larger than anything of its kind."""


def open_regular(path: Path) -> BinaryIO:
    """The regular file at `path`, open for reading. Raises NotReadableError with what it is instead."""
    try:
        _require_regular(os.stat(path), path)  # noqa: PTH116 - opening a device may already do something
        descriptor = os.open(path, _FLAGS)
        try:
            _require_regular(os.fstat(descriptor), path)
            return open(descriptor, "rb")  # noqa: PTH123 - a descriptor; the caller closes it
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError as error:
        raise NotReadableError(f"{path} does not exist") from error
    except OSError as error:
        raise NotReadableError(f"{path} cannot be read: {_reason(error)}") from error
    except ValueError as error:  # NUL in a name
        raise NotReadableError(f"{path} cannot be read: not a valid file name") from error


def file_fault(path: Path) -> str | None:
    """What `path` is where a regular file is needed, as the end of a sentence; None where it is one."""
    return _not_regular(path.stat().st_mode)


def folder_fault(path: Path) -> str | None:
    """What is wrong with `path` where a folder is needed, as the end of a sentence; None where it is one.

    Raises PermissionError where this user may not look.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "no such folder"
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        return f"cannot be read: {_reason(error) if isinstance(error, OSError) else 'no folder has such a name'}"
    if stat.S_ISDIR(mode):
        return None
    what = next((text.partition(",")[0] for test, text in _KINDS if test(mode)), "is a file")
    return f"{what}, a folder is needed here"


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of the regular file at `path`. Raises NotReadableError, TooLargeError when it has more than `limit`."""
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > limit else read_up_to(file, limit + 1)
        except OSError as error:
            raise NotReadableError(f"{path} cannot be read: {_reason(error)}") from error
    if size > limit or len(data) > limit:
        raise TooLargeError(f"{path} is larger than {_told(limit)}, too large for a file of this kind; it was not read")
    return data


def read_up_to(file: BinaryIO, count: int) -> bytes:
    """The next `count` bytes of `file`, fewer where it ends before.

    In pieces: Windows touches every page of the buffer that a read is given, however small the file is.
    """
    pieces = []
    while count and (piece := file.read(min(count, _PIECE))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """The text of the UTF-8 file at `path`, without byte order mark, lines ending as they do.

    Raises NotReadableError, TooLargeError; UsageError when it is not UTF-8.
    """
    try:
        return read_regular(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _require_regular(found: os.stat_result, path: Path) -> None:
    what = _not_regular(found.st_mode)
    if what is not None:
        raise NotReadableError(f"{path} {what}")


def _not_regular(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    return next((text for test, text in _KINDS if test(mode)), "is not a regular file")


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "its symbolic links form a loop"
    return error.strerror or str(error)


def _told(limit: int) -> str:
    return f"{limit >> 20} MB" if limit >= 1 << 20 else f"{limit >> 10} kB"


def toml_loads(text: str) -> dict[str, Any]:
    """TOML by whatever reads it here: Python's own from 3.11 on, else what Kohya or pip bring along.

    Raises ValueError when `text` is not TOML, UsageError when nothing here reads it.
    """
    for module in ("tomllib", "tomli", "toml", "pip._vendor.tomli"):
        try:
            reader = importlib.import_module(module)
        except ImportError:
            continue
        try:
            document: dict[str, Any] = reader.loads(text)
        except ValueError:
            raise
        except (RecursionError, MemoryError) as error:
            raise ValueError("nested too deeply") from error
        except Exception as error:  # `toml` raises IndexErrors and others
            raise ValueError(f"not TOML ({type(error).__name__}: {error})") from error
        return document
    raise UsageError("no TOML reader in this Python: install `toml` there (pip install toml), then run again")
