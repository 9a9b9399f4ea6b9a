"""Running something in a process of its own that is stopped when it takes too long or too much memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

SECONDS, MEGABYTES = 20, 1024  # what no input may take, of the processor; a bound, not a measurement
WAITING = 10  # times as long it may take by the clock: other processes may keep the machine busy
EXPIRED = (signal.SIGPROF, signal.SIGALRM) if hasattr(signal, "SIGALRM") else ()
Result = TypeVar("Result")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to bound a test")


@dataclass(frozen=True)
class Ended:
    """How it ended. value: what it gave; error: repr of what it raised, "" for nothing; died: of which signal."""

    value: Any
    error: str
    died: int
    megabytes: int


def run(action: Callable[[], Any], *, seconds: int = SECONDS) -> Ended:
    """Do `action` in a fork. megabytes: the peak beyond what this process has already."""
    import resource

    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            limit_time(seconds)
            before = resident()
            limit = address_space() + (MEGABYTES << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            answer: tuple[Any, str] = (None, "")
            try:
                answer = (action(), "")
            except BaseException as error:
                answer = (None, repr(error)[:2000])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            with os.fdopen(write, "wb") as pipe:
                pickle.dump((*answer, max(0, peak - before)), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if not data:
        return Ended(None, f"ended with signal {died}" if died else "gave nothing", died, 0)
    value, failure, peak = pickle.loads(data)
    return Ended(value, failure, died, peak)


def limit_time(seconds: int) -> None:
    """From now on this process may take `seconds` of the processor, and WAITING times as long by the clock."""
    for expired in EXPIRED:
        signal.signal(expired, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(WAITING * seconds)


def within(action: Callable[[], Result]) -> Result:
    """What `action` gives, within SECONDS and MEGABYTES. Fails the test otherwise."""
    ended = run(action)
    assert ended.error == "", ended.error
    assert ended.megabytes < MEGABYTES
    result: Result = ended.value
    return result


def resident() -> int:
    """Megabytes that this process has had at its peak."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def address_space() -> int:
    """Bytes of address space that this process has."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 1 << 40
