"""Which tensor of a saved model file is made of which parameters: snapshots go by the latter, models by the former.

Kohya's savers rename tensors, transpose some and put others together. What they do depends on the family and the
release, so it is not repeated here but recognized: while the EMA was saved, samples of each parameter were taken, and a
tensor of the file that was written then has the same values, rounded to the file's dtype.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.core.errors import UsageError
from kohya_ext.ema.snapshot import places
from kohya_ext.tensors.tensorfile import DTYPES, TensorFile


@dataclass(frozen=True)
class Piece:
    """A part of a file's tensor. name: of the source's tensor; shape: of that; turned: transposed in the file."""

    name: str
    shape: tuple[int, ...]
    turned: bool = False

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What a new file is like. like: the file that its names, dtypes, metadata and all else come from; pieces: of those
    of its tensors that are mixed, one after the other.
    """

    like: Path
    pieces: Mapping[str, tuple[Piece, ...]]


def own_layout(like: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> Layout:
    """The layout where the sources are files as the new one. shapes: of `like`, with the names of the dtypes."""
    floating = {key: shape for key, (dtype, shape) in shapes.items() if DTYPES[dtype].is_floating_point}
    return Layout(like, {key: (Piece(key, shape),) for key, shape in floating.items()})


def recognized(
    like: Path, samples: Path, shapes: Mapping[str, tuple[int, ...]], is_all: Callable[[str, float], bool]
) -> Layout:
    """The layout of a saved file.

    Args:
        like: what was saved from the weights while the samples were taken.
        samples: of the parameters.
        shapes: of the parameters.
        is_all: tells whether a parameter was this number in all its elements from the first snapshot to the last. It
            looks like any other tensor of zeros or ones then, and the file's own values are right for it.

    Raises:
        UsageError: a parameter is in no tensor of the file as it is.
    """
    file, sampled = TensorFile(like), TensorFile(samples)
    if dict.fromkeys(sampled.shapes) != dict.fromkeys(shapes):
        raise UsageError(f"{samples} is from another run than the snapshots next to it")
    values = {name: sampled.load(name) for name in shapes}
    still = {name for name, value in values.items() if _is_constant(value) and is_all(name, float(value[0]))}
    known = _Samples(values, {name: shape for name, shape in shapes.items() if name not in still})
    pieces: dict[str, tuple[Piece, ...]] = {}
    for key in file.shapes:
        tensor = file.load(key)
        if tensor.dtype.is_floating_point and tensor.numel():
            found = known.of(tensor)
            if found is not None:
                pieces[key] = found
    missing = known.unused()
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(shapes)} weights of the snapshots ({missing[0]}, for one) are not in {like} as "
            "they are: its saver computes the file from them. Save the EMA more often instead: files can be mixed too"
        )
    return Layout(like, pieces)


class _Samples:
    """Finds parameters by their values, in their order where several have the same.

    One with values of its own may be in the file twice; constant ones could be anything, and are used once.
    """

    def __init__(self, samples: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._samples, self._shapes = samples, shapes
        self._left = dict.fromkeys(name for name, shape in shapes.items() if math.prod(shape))
        self._by_first: dict[torch.dtype, dict[float, list[str]]] = {}

    def unused(self) -> list[str]:
        return list(self._left)

    def of(self, tensor: Tensor) -> tuple[Piece, ...] | None:
        """What this tensor is made of, None where it is not of parameters."""
        flat, found, begin = tensor.reshape(-1), list[Piece](), 0
        while begin < len(flat):
            rest = flat[begin:]
            taken = {one.name for one in found}
            piece = next(self._fitting(rest, tensor if not begin else None, taken), None)
            if piece is None:
                return None
            found.append(piece)
            begin += piece.count
        for piece in found:
            self._left.pop(piece.name, None)
        return tuple(found)

    def _fitting(self, rest: Tensor, whole: Tensor | None, taken: Iterable[str]) -> Iterator[Piece]:
        """Parameters that `rest` may begin with, or that the whole tensor is, turned."""
        candidates = self._first(rest.dtype).get(float(rest[0]), [])
        for name in sorted(candidates, key=lambda name: self._rank(name, len(rest))):
            shape = self._shapes[name]
            if (
                name in taken
                or math.prod(shape) > len(rest)
                or (name not in self._left and _is_constant(self._samples[name]))
            ):
                continue
            values, where = self._samples[name].to(rest.dtype), places(math.prod(shape))
            if torch.equal(rest[where], values):
                yield Piece(name, shape)
            elif whole is not None and len(shape) == 2 and tuple(whole.shape) == shape[::-1]:
                rows, columns = where // shape[1], where % shape[1]
                if torch.equal(whole[columns, rows], values):
                    yield Piece(name, shape, turned=True)

    def _rank(self, name: str, wanted: int) -> tuple[bool, bool]:
        """Unused ones first, of those what is all of the tensor."""
        return name not in self._left, math.prod(self._shapes[name]) != wanted

    def _first(self, dtype: torch.dtype) -> dict[float, list[str]]:
        """Parameters by their first element as a file of this dtype has it."""
        if dtype not in self._by_first:
            table: dict[float, list[str]] = defaultdict(list)
            for name, shape in self._shapes.items():
                if 0 in shape:
                    continue
                table[float(self._samples[name][0].to(dtype))].append(name)
            self._by_first[dtype] = table
        return self._by_first[dtype]


def _is_constant(values: Tensor) -> bool:
    return bool(values.numel()) and bool((values == values[0]).all())
