"""What the updates of an EMA take, measured in a few of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kohya_ext.ema import Shadow

# Steps of averaging before the measurement: by then whatever is compiled has been. Power averages take longest.
SETTLED = 30
# Updates that are measured.
MEASURED = 10


class Stopwatch:
    """Measures `MEASURED` updates of one shadow; only while it does so it waits for the device.

    In a fused backward pass an update is made of many parts, each of which is measured.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._begun_at: int | None = None
        self.milliseconds: float | None = None  # a step, once it is known

    @contextmanager
    def around(self, shadow: Shadow) -> Iterator[None]:
        """Around every update of `shadow`, or part of one."""
        averaged = shadow.step - shadow.start_step
        if self.milliseconds is not None or averaged < SETTLED:
            yield
            return
        if self._begun_at is None:
            self._begun_at = averaged
        if averaged - self._begun_at >= MEASURED * shadow.update_every:
            self.milliseconds = 1e3 * self._seconds / (averaged - self._begun_at)
            yield
            return
        _finish_queued_work()
        begin = time.perf_counter()
        yield
        _finish_queued_work()
        self._seconds += time.perf_counter() - begin


def _finish_queued_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
