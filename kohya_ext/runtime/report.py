"""The runtime's messages: one line each, on the main process only; and how it stops a run."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import sys
from typing import NoReturn, TextIO

from kohya_ext.core import shell
from kohya_ext.core.errors import WRONG_USAGE
from kohya_ext.core.terminal import printable
from kohya_ext.runtime.run import run


def is_main_process() -> bool:
    """True in the process that speaks and saves: rank 0, or the only one."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) in ("", "0", "-1")


def say(message: str) -> None:
    """Print one line, prefixed, on the main process. What the terminal cannot show is escaped."""
    if is_main_process():
        _print(f"kohya_ext: {message}", sys.stdout)


def warn_again_at_end(message: str) -> None:
    """Say `message` now, and once more when the process ends: hours of log may lie in between."""
    if not is_main_process():
        return
    if not run.reminders:
        atexit.register(_remind)
    run.reminders.append(message)
    _print(f"kohya_ext: WARNING: {message}", sys.stderr)


def stop(message: str, exit_code: int = WRONG_USAGE) -> NoReturn:
    """End the run: an explicitly given flag cannot be honoured. Raises SystemExit, which no `except Exception` eats."""
    _print(f"kohya_ext: {message}", sys.stderr)
    raise SystemExit(exit_code)


def not_hooked(name: str, error: BaseException) -> None:
    """Say that `name` stays as upstream made it. A run that asks for something of ours stops later, see `guard`."""
    if multiprocessing.parent_process() is None:  # a worker of a DataLoader has nothing to tell
        say(
            f"could not hook into {name!r}, it is left unpatched ({type(error).__name__}: {error}); to fix it, "
            f"{shell.install_again(sys.executable)}"
        )


def _remind() -> None:
    for message in run.reminders:
        _print(f"kohya_ext: REMINDER: {message}", sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Never raises: a message must not end a run, whatever happened to the terminal."""
    with contextlib.suppress(OSError, ValueError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = printable(text, one_line=True)  # it may hold names of files, and must pass for nothing else
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
