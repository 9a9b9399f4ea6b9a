"""Gradient elements that AdaCoor skipped because they were not finite: reported with each checkpoint and at the end.

The count may lie on a GPU. It is read where the run waits for the disk anyway, never within a step.
"""

from __future__ import annotations

import atexit
import contextlib
from typing import Any

from kohya_ext.runtime.report import say
from kohya_ext.runtime.run import run


def follow(optimizer: Any) -> None:
    """Remember the count of `optimizer`, if it keeps one; the optimizer itself may go."""
    count = getattr(optimizer, "skip_count", None)
    if count is None:
        return
    if not run.skip_counts:
        atexit.register(_at_exit)
    run.skip_counts.append(count)


def report() -> None:
    """Say how many there were so far, if there are more than last time."""
    elements = sum(count.total() for count in run.skip_counts)
    if elements <= run.skips_told:
        return
    run.skips_told = elements
    whole = max(count.whole_steps() for count in run.skip_counts)
    steps = f", {whole} whole steps among them" if whole else ""
    say(f"AdaCoor skipped {elements} gradient elements so far that were not finite{steps}")


def _at_exit() -> None:
    with contextlib.suppress(Exception):  # the device may have failed, and that is what ends the run
        report()
