"""The one place that wraps the training loaders' `__iter__`: what comes between a loader and the script's loop.

accelerate has kept one class for this since its first releases, `DataLoaderShard`, and every script iterates what
`accelerator.prepare` has made of its loader. A layer is a generator around the batches. Layers are stacked in the order
of `POSITIONS`, whoever comes first: the resume is innermost and counts real batches only, validation is outermost and
may add batches of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from kohya_ext.runtime.run import run

RESUME, VALIDATION = "resume", "validation"
POSITIONS = (RESUME, VALIDATION)  # from the inside out
_MARK = "__kohya_ext_layers__"


@dataclass(frozen=True)
class Pass:
    """One iteration of a script over one of its loaders.

    loader: accelerate's, as `accelerator.prepare` returned it. script: the frame of the function that iterates.
    """

    loader: Any
    script: FrameType


Layer = Callable[[Iterator[Any], Pass], Iterator[Any]]


def insert(position: str, layer: Layer) -> None:
    """From now on put `layer` around the batches of every loader of this run; one at the same position is replaced.

    To be called while the accelerator is prepared, after `run.begin`, which removes what an earlier run has left.
    Raises ValueError for a position that is not in `POSITIONS`.
    """
    if position not in POSITIONS:
        raise ValueError(f"no position {position!r}, expected one of {', '.join(POSITIONS)}")
    run.loader_layers[position] = layer
    _wrap()


def _wrap() -> None:
    """Replace accelerate's `__iter__`, once, until `run.restore`."""
    from accelerate.data_loader import DataLoaderShard

    original = DataLoaderShard.__iter__
    if hasattr(original, _MARK):
        return

    def iterate(loader: Any) -> Iterator[Any]:
        return layered(original(loader), Pass(loader, _script(sys._getframe(1))))

    setattr(iterate, _MARK, original)
    run.replace(DataLoaderShard, "__iter__", iterate)


def plain(loader: Any) -> Iterator[Any]:
    """The batches of `loader` without any layer."""
    iterate: Callable[[Any], Iterator[Any]] = type(loader).__iter__
    return getattr(iterate, _MARK, iterate)(loader)


def _script(frame: FrameType) -> FrameType:
    """The first function around `frame` that is not ours: what is between may be."""
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("kohya_ext."):
        frame = frame.f_back
    return frame


def layered(batches: Iterator[Any], taken: Pass) -> Iterator[Any]:
    """`batches` through all layers of this run."""
    for position in POSITIONS:
        if position in run.loader_layers:
            batches = run.loader_layers[position](batches, taken)
    return batches
