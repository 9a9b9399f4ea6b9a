"""The EMAs of this run, for every module that needs them: one, or one for each of two widths.

They are kept in `runtime.run`; nothing happens here in a run without EMA.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime.options import EmaOptions
from kohya_ext.runtime.run import run

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average


def begin(args: argparse.Namespace, options: EmaOptions) -> None:
    """A run with EMA starts."""
    from kohya_ext.runtime.average import Average
    from kohya_ext.runtime.snapshots import refuse_those_of_another_run

    refuse_those_of_another_run(args, options)
    run.averages = [Average(args, options, place) for place in range(len(options.sigma_rel or (None,)))]


def kept() -> list[Average]:
    """All EMAs of this run, none when it keeps none."""
    return list(run.averages)


def current() -> Average | None:
    """The EMA of this run, of two the first; None when it keeps none."""
    return run.averages[0] if run.averages else None


def follow(optimizer: Any) -> None:
    """Average the weights of `optimizer`, if this run keeps an EMA."""
    for average in run.averages:
        average.follow(optimizer)
    _join()


def _join() -> None:
    """Let the EMAs of one optimizer be updated together."""
    for tracks in zip(*(average.tracks for average in run.averages), strict=True):
        for track in tracks:
            track.together = tracks


def meet(model: Any) -> None:
    """Learn the names of a model's parameters, which the state files are keyed by."""
    for average in run.averages:
        average.meet(model)


def attach(engine: Any, accelerator: Any) -> None:
    """DeepSpeed has made an engine of the model whose weights are averaged."""
    if not run.averages:
        return
    from kohya_ext.runtime.zero import Zero, outlast_first_rank
    from kohya_ext.runtime.zero_states import JointStates

    zero = Zero(engine, run.averages[0].names_of)
    for average in run.averages:
        average.attach(zero)
    _join()
    end_training = accelerator.end_training

    @functools.wraps(end_training)
    def end_training_later(*given: Any, **named: Any) -> Any:
        outlast_first_rank(zero)
        return end_training(*given, **named)

    accelerator.end_training = end_training_later
    run.joint_states = JointStates(run.averages[0].args, accelerator, zero)


@contextmanager
def raw_weights() -> Iterator[None]:
    """The raw weights are in place while this lasts, even within a save from the EMA."""
    with ExitStack() as stack:
        for average in run.averages:
            stack.enter_context(average.raw())
        yield


@contextmanager
def raw_for_saving() -> Iterator[None]:
    """The raw weights are in the model in a form that can be written: with ZeRO 3 it has none of its own."""
    with run.averages[0].raw_for_saving() if run.averages else nullcontext():
        yield


def save_state(folder: str | None) -> None:
    """Write the EMAs next to a state that Kohya has just saved."""
    if folder is not None:
        for average in run.averages:
            average.save_state(Path(folder))


def load_state(folder: str | None) -> None:
    """Read the EMAs from a state that Kohya has just loaded."""
    if folder is not None:
        for average in run.averages:
            average.load_state(Path(folder))
