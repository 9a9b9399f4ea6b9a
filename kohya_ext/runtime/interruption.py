"""SIGTERM in the middle of a save: what is under way is taken back first, then the process ends by the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """SIGTERM has come; raised where the main thread is, so that files and weights are put right on the way out."""


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """While this lasts, SIGTERM unwinds the stack before it ends the process.

    Only where it would end the process right there: a handler of somebody else's stays. Outside the main thread nothing
    can be done, and nothing is.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the unwinding
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
