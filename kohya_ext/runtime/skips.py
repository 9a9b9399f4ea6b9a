"""Gradient elements that AdaCoor skipped because they were not finite: said with each checkpoint and at the end.

The count may lie on a GPU. It is read where the run waits for the disk anyway, never within a step.
"""

from __future__ import annotations

import atexit
import contextlib
from typing import Any

from kohya_ext.runtime.report import say

_counts: list[Any] = []
_told = 0


def follow(optimizer: Any) -> None:
    """Remember the count of `optimizer`, if it keeps one; the optimizer itself may go."""
    count = getattr(optimizer, "skip_count", None)
    if count is None:
        return
    if not _counts:
        atexit.register(_at_exit)
    _counts.append(count)


def report() -> None:
    """Say how many there were so far, if there are more than last time."""
    global _told
    elements = sum(count.total() for count in _counts)
    if elements <= _told:
        return
    _told = elements
    whole = max(count.whole_steps() for count in _counts)
    steps = f", {whole} whole steps among them" if whole else ""
    say(f"AdaCoor skipped {elements} gradient elements so far that were not finite{steps}")


def _at_exit() -> None:
    with contextlib.suppress(Exception):  # the device may have failed, and that is what ends the run
        report()
