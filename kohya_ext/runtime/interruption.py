"""`--kohya_ext_save_on_signal`: SIGTERM and SIGINT ask for a state and a clean stop at the next optimizer step.

A rented machine that is taken away sends SIGTERM first, to every process of the run. The workers of a data loader must
not die of it before the state has been saved, so they are started with these signals blocked.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from kohya_ext.runtime.run import run

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Abandoned(BaseException):
    """What is under way is left where it is: a signal asks for a state, and nobody needs the rest."""


class Interruption:
    """Whether this run was asked to stop."""

    def __init__(self) -> None:
        self.asked_by: int | None = None
        self._installed = False
        self._abandonable = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """From now on the signals ask. Before, while there is nothing to save, they end the process as ever."""
        if self._installed or threading.current_thread() is not threading.main_thread():
            return
        self._installed = True
        for number in SIGNALS:
            before = self._before[number] = signal.signal(number, self._ask)
            run.undoing.append(functools.partial(_give_back, number, before))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again = self.asked_by is not None
        self.asked_by = number
        if again and number == signal.SIGINT:  # Ctrl+C twice: the user does not want to wait
            signal.signal(number, signal.default_int_handler)
            _write(b"\nkohya_ext: press Ctrl+C once more to stop at once, without saving a state\n")
        elif not again:
            name = signal.Signals(number).name.encode()
            _write(b"\nkohya_ext: " + name + b": a state is saved after this optimizer step, then the run stops\n")
            if self._abandonable:
                raise Abandoned

    def end_as_ever(self) -> None:
        """Have the signal that has come end the process as if nobody had listened for it."""
        number = self.asked_by
        if number is not None:
            _give_back(number, _ends_it(number, self._before.get(number)))
            signal.raise_signal(number)

    @contextlib.contextmanager
    def abandonable(self) -> Iterator[None]:
        """What runs while this lasts is left at once by a signal, by raising `Abandoned` in it."""
        self._abandonable = True
        try:
            yield
        finally:
            self._abandonable = False

    @contextlib.contextmanager
    def sparing_workers(self) -> Iterator[None]:
        """Processes that are started while this lasts do not see the signals; ours sees them afterwards."""
        if not self._installed or not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ends_it(number: int, handler: Any) -> Any:
    """The handler of before, where that ends a process; scripts start others in the background with SIGINT ignored."""
    if handler is not signal.SIG_IGN:
        return handler
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL


def _give_back(number: int, handler: Any) -> None:
    with contextlib.suppress(ValueError):  # in another thread than the main one nobody may
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it is not Python's


def _write(text: bytes) -> None:
    """Not by `print`: a signal may come in the middle of one."""
    with contextlib.suppress(OSError):
        os.write(2, text)
