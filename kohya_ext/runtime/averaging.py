"""The EMA of the run: one shadow for each optimizer, updated on real steps, swapped in for saves and samples.

The savers that Kohya calls last no longer have the accelerator at hand, so the run's average is a module global.

Updates are *deferred*. Kohya may still change weights after `optimizer.step()` (`--scale_weight_norms`, frozen
embedding rows), so a step only marks the average as behind; it catches up before the next step, and before any save,
sample or state. Steps that never happen (accumulation, overflow skips) fire no hook and so are not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kohya_ext import __version__
from kohya_ext.runtime.options import EmaOptions
from kohya_ext.runtime.report import is_main_process, say, stop

_current: Average | None = None


def begin(args: argparse.Namespace, options: EmaOptions) -> None:
    """A run with EMA starts."""
    global _current
    _current = Average(args, options)


def current() -> Average | None:
    """The average of this run; None when it keeps none."""
    return _current


def follow(args: argparse.Namespace, optimizer: Any) -> None:
    """Average the weights of `optimizer`, if this run keeps an average."""
    if _current is not None:
        _current.follow(optimizer)


def meet(model: Any) -> None:
    """Learn the names of a model's parameters, which the state files are keyed by."""
    if _current is not None:
        _current.meet(model)


@contextmanager
def raw_weights() -> Iterator[None]:
    """The raw weights are in place while this lasts, even within a save from the EMA."""
    if _current is None:
        yield
    else:
        with _current.raw():
            yield


def save_state(folder: str | None) -> None:
    """Write the average beside a state that Kohya has just saved."""
    if _current is not None and folder is not None:
        _current.save_state(folder)


def load_state(folder: str | None) -> None:
    """Read the average from a state that Kohya has just loaded."""
    if _current is not None and folder is not None:
        _current.load_state(folder)
