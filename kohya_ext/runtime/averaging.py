"""The EMA of this run, for every module that needs it.

It is kept in `runtime.run`; nothing happens here in a run without EMA.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime.options import EmaOptions
from kohya_ext.runtime.run import run

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average


def begin(args: argparse.Namespace, options: EmaOptions) -> None:
    """A run with EMA starts."""
    from kohya_ext.runtime.average import Average

    run.restore()  # what a run before this one in the same process has left
    run.average = Average(args, options)


def current() -> Average | None:
    """The average of this run; None when it keeps none."""
    average: Average | None = run.average
    return average


def follow(optimizer: Any) -> None:
    """Average the weights of `optimizer`, if this run keeps an average."""
    if run.average is not None:
        run.average.follow(optimizer)


def meet(model: Any) -> None:
    """Learn the names of a model's parameters, which the state files are keyed by."""
    if run.average is not None:
        run.average.meet(model)


@contextmanager
def raw_weights() -> Iterator[None]:
    """The raw weights are in place while this lasts, even within a save from the EMA."""
    if run.average is None:
        yield
    else:
        with run.average.raw():
            yield


def save_state(folder: str | None) -> None:
    """Write the EMA next to a state that Kohya has just saved."""
    if run.average is not None and folder is not None:
        run.average.save_state(Path(folder))


def load_state(folder: str | None) -> None:
    """Read the EMA from a state that Kohya has just loaded."""
    if run.average is not None and folder is not None:
        run.average.load_state(Path(folder))
