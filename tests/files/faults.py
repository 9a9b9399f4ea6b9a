"""Faults at the boundaries between two writes: an exception, or a real SIGKILL of a real process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kohya_ext.files import faultpoints, lock

Action = Callable[[], object]


@contextlib.contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    """The lock of `folder` as another process has it: it goes with what was opened, not with the process."""
    taken = lock._try(folder, lock._identity(folder))
    if taken is None:
        raise BlockingIOError(f"{folder} is locked")
    try:
        yield
    finally:
        lock._release(taken)


@contextlib.contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Let `listener` hear every boundary."""
    before = faultpoints.listener
    faultpoints.listener = listener
    try:
        yield
    finally:
        faultpoints.listener = before


def boundaries(action: Action) -> list[str]:
    """Run `action` to its end and say what it crossed."""
    crossed: list[str] = []
    with listening(crossed.append):
        action()
    return crossed


def failing_at(number: int, error: BaseException, action: Action) -> None:
    """Run `action`; at boundary `number`, counted from 0, raise `error` there, once."""
    count = iter(range(1_000_000))

    def listener(name: str) -> None:
        if next(count) == number:
            raise error

    with listening(listener):
        action()


def killed_at(number: int, action: Action) -> bool:
    """Run `action` in a process of its own that is killed at boundary `number`; False when it ended before that."""
    child = os.fork()
    if child == 0:
        count = iter(range(1_000_000))

        def listener(name: str) -> None:
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        _run_and_leave(listener, action)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return False


def _wait_for_the_rest_of(group: int) -> None:
    """The kill leaves a git that was started alone, and that writes until it is done."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        threading.Event().wait(0.01)


def killed_near(number: int, seconds: float, action: Action, slow: float) -> tuple[str, str] | None:
    """Run `action` in a process of its own and kill it from outside, `seconds` after its boundary `number`.

    slow: seconds that it waits at each boundary, so that kills land everywhere. Returns the last boundary crossed and
    how many were, None when the process ended before the kill. How busy the machine is does not matter.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()  # what it starts is found by its group

        def listener(name: str) -> None:
            os.write(writing, name.encode() + b"\n")
            threading.Event().wait(slow)

        _run_and_leave(listener, action)
    os.close(writing)
    said = b""
    while said.count(b"\n") <= number and (piece := os.read(reading, 65536)):
        said += piece
    threading.Event().wait(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    _wait_for_the_rest_of(child)
    os.close(reading)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, "the child failed by itself"
        return None
    names = said.decode().splitlines()
    return names[-1] if names else "", str(len(names))


def _run_and_leave(listener: Callable[[str], None], action: Action) -> None:
    code = 1
    try:
        faultpoints.listener = listener
        action()
        code = 0
    finally:
        os._exit(code)
