"""The one average of this run, for everybody who needs it.

The savers that Kohya calls last no longer have the accelerator at hand, and nothing may be hung on `args`, which Kohya
writes into logs and TOML files. So it is a module global.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime.options import EmaOptions

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average

_current: Average | None = None


def begin(args: argparse.Namespace, options: EmaOptions) -> None:
    """A run with EMA starts."""
    from kohya_ext.runtime.average import Average

    global _current
    _current = Average(args, options)


def current() -> Average | None:
    """The average of this run; None when it keeps none."""
    return _current


def follow(optimizer: Any) -> None:
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
    """Write the EMA next to a state that Kohya has just saved."""
    if _current is not None and folder is not None:
        _current.save_state(Path(folder))


def load_state(folder: str | None) -> None:
    """Read the EMA from a state that Kohya has just loaded."""
    if _current is not None and folder is not None:
        _current.load_state(Path(folder))
