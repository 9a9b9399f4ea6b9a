"""An unprivileged user who works against us: a process of its own, as `nobody` where the tests run as root."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NOBODY = 65534

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to have a stranger without rights next to it"
)


def give(path: Path, uid: int = NOBODY) -> Path:
    """`path` and all that is in it to `uid`."""
    for entry in (path, *path.rglob("*")):
        os.chown(entry, uid, uid, follow_symlinks=False)
    return path


def as_stranger(action: Callable[[], object], uid: int = NOBODY) -> int:
    """Run `action` in a process of `uid`; its exit status, 0 for a return and 1 for an exception."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _become(uid)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def meddling(folder: Path, step: Callable[[], object], uid: int = NOBODY) -> Iterator[None]:
    """While this lasts, a process of `uid` repeats `step` with `folder` as its current folder. Errors are its own."""
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            _become(uid)
            while True:
                with contextlib.suppress(OSError):
                    step()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


class _Watch:
    """An audit hook, of which a process can never get rid: it listens only while somebody wants it to."""

    def __init__(self) -> None:
        self.listener: Callable[[str], None] | None = None
        self.added = False

    def heard(self, event: str, _: object) -> None:
        listener = self.listener
        if listener is not None and (event == "open" or event.startswith("os.")):
            self.listener = None
            try:
                listener(event)
            finally:
                self.listener = listener


_watch = _Watch()


@contextlib.contextmanager
def before_call(number: int, meddle: Callable[[], object]) -> Iterator[list[str]]:
    """Let `meddle` happen right before the call number `number`, from 0, that opens, renames or otherwise touches
    files; the list grows by the name of each. What a race hits by chance, this hits for certain."""
    if not _watch.added:
        sys.addaudithook(_watch.heard)
        _watch.added = True
    calls: list[str] = []

    def listener(event: str) -> None:
        calls.append(event)
        if len(calls) == number + 1:
            with contextlib.suppress(OSError):
                meddle()

    _watch.listener = listener
    try:
        yield calls
    finally:
        _watch.listener = None
