"""Signals at any moment of a real run, without its start-up: it waits where it would load a state, and is forked.

In the run (`rig_launch.py waiting`), `wait` takes orders from the socket RIG_ORDERS, one at a time: names and values
for the script's arguments, such as another output folder and the state to resume from. A process forked for each goes
on with them as if it had been started with them. `Waiting` is the other end.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import RLock
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

PLACE = "resume_from_local_or_hf_if_specified"
MODULES = ("library.args", "library.train_util")  # one of them defines it, by release
STARTS_WITHIN = ENDS_WITHIN = 600.0


def wait(accelerator: Any, args: Any) -> None:
    """Fork for each order; return in the forked process. The one that waits ends when the orders do."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["RIG_ORDERS"])
        numbers = [(one, one.value) for one in gc.get_objects() if isinstance(one, Synchronized)]
        drawn = random.getstate()
        for line in connection.makefile("r", encoding="utf-8"):
            child = os.fork()
            if child == 0:
                random.setstate(drawn)  # Python seeds it anew in every forked process
                for one, value in numbers:  # those shared with workers: a forked run may have died with their lock
                    one.__init__(one.get_obj(), RLock())  # type: ignore[misc]
                    one.value = value
                _become(json.loads(line), args)
                return
            connection.sendall(f"{child}\n".encode())
            connection.sendall(f"{os.waitpid(child, 0)[1]}\n".encode())
    raise SystemExit


def _become(order: dict[str, str], args: Any) -> None:
    output = os.open(order.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(output, number)
    vars(args).update(order)


@dataclass(frozen=True)
class Ended:
    """How a forked run ended: its exit code, or minus the signal that ended it. signalled: it got a SIGTERM."""

    code: int
    seconds: float
    signalled: bool


class Waiting:
    """A run that waits for orders; what it was ordered to do is done one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answers = connection.makefile("r", encoding="utf-8", buffering=1)

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        """No more orders."""
        self._connection.shutdown(socket.SHUT_RDWR)
        self._answers.close()

    def go_on(self, *, signal_after: float | None = None, **order: str) -> Ended:
        """Fork a run with `order` and wait for its end; SIGTERM reaches it after so many seconds, if it still runs."""
        started = time.monotonic()
        self._connection.sendall(f"{json.dumps(order)}\n".encode())
        child, signalled = int(self._answers.readline()), False
        if signal_after is not None and not self._has_ended(signal_after):
            signalled = _send(child, signal.SIGTERM)
        if not self._has_ended(ENDS_WITHIN):
            _send(child, signal.SIGKILL)
        status = int(self._answers.readline())
        return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - started, signalled)

    def _has_ended(self, within: float) -> bool:
        return bool(select.select([self._connection], [], [], within)[0])


def _send(process: int, number: signal.Signals) -> bool:
    """Send a signal to a process; whether it was still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
        return True
    return False


@contextlib.contextmanager
def waiting(start: Callable[[], Any], folder: Path) -> Iterator[Waiting]:
    """A run that waits, while this lasts. start: runs it until it ends, with RIG_ORDERS as it is then."""
    path = folder / "orders"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.environ["RIG_ORDERS"] = str(path)
        ended: list[Any] = []
        thread = threading.Thread(target=lambda: ended.append(start()))
        thread.start()
        try:
            connection = _answer(listener, thread)
            assert connection is not None, f"it has not come so far: {ended}"
            with connection, Waiting(connection) as process:
                yield process
        finally:
            thread.join()
            del os.environ["RIG_ORDERS"]


def _answer(listener: socket.socket, thread: threading.Thread) -> socket.socket | None:
    """The connection to a run that has come to the place; None if it has ended before."""
    until = time.monotonic() + STARTS_WITHIN
    while thread.is_alive() and time.monotonic() < until:
        if select.select([listener], [], [], 0.2)[0]:
            return listener.accept()[0]
    return None
