"""Snapshots of an EMA in the course of a run, by the parameters' names: what EMAs of other lengths are made from.

A float32 snapshot holds the EMA itself. A 16-bit one holds its difference from a file of reference weights, which loses
far less than the weights in 16 bits would: a training changes weights by little. Each difference is multiplied by a
power of two so that float16's exponents are enough; the factors that undo it are a tensor of their own.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.tensors.elements import DEVICE_SLICE, slices
from kohya_ext.tensors.streaming import write_tensors
from kohya_ext.tensors.tensorfile import TensorFile

SNAPSHOT_KEY = "kohya_ext_snapshot"  # in the metadata: the dtype of what it holds
REFERENCE_KEY = "kohya_ext_snapshot_reference"  # in those of both files: which reference weights
SCALES = "scales"  # the tensor of factors, in the order of the others
_EXACT = torch.float32
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HIGHEST = 15  # power of two that scaled differences stay below; float16 ends just below 16
_LARGEST_SHIFT = 100  # so that factors are normal float32 numbers
# elements of each tensor that tell which one it is: all of a small one, so many of a large one
_ALL_OF = 2048
_SAMPLES = 256

# name, weights, EMA
Entry = tuple[str, Tensor, Tensor]


def write_reference(path: Path, entries: Sequence[Entry]) -> None:
    """Write the weights that later snapshots are told from, in their own dtypes, under a new identity.

    Raises OSError: it cannot be written; nothing is there then.
    """
    forms = {name: (weights.dtype, tuple(weights.shape)) for name, weights, _ in entries}
    tensors = (weights.detach().nan_to_num(0.0, 0.0, 0.0) for _, weights, _ in entries)
    write_tensors(path, forms, tensors, {REFERENCE_KEY: secrets.token_hex(8)})


def write_snapshot(
    path: Path, entries: Sequence[Entry], dtype: str, about: Mapping[str, str], reference: TensorFile | None
) -> None:
    """Write the EMA, whole or not at all.

    Args:
        path: of the new file.
        entries: all that is averaged.
        dtype: float32 for the EMA itself, float16 or bfloat16 for differences.
        about: which EMA it is, for the file's metadata.
        reference: what `write_reference` has written, for differences.

    Raises:
        OSError: it cannot be written.
        ValueError: the reference weights are another model's.
    """
    about = {**about, SNAPSHOT_KEY: dtype}
    stored = _DTYPES[dtype]
    forms = {name: (stored, tuple(average.shape)) for name, _, average in entries}
    if reference is None:
        write_tensors(path, forms, (average.to(_EXACT) for _, _, average in entries), about)
        return
    check_reference(reference, {name: tuple(average.shape) for name, _, average in entries})
    about[REFERENCE_KEY] = reference.metadata[REFERENCE_KEY]
    factors: list[float] = []

    def differences() -> Iterator[Tensor]:
        for name, _, average in entries:
            difference, factor = _difference(average, reference.load(name), stored)
            factors.append(factor)
            yield difference
        yield torch.tensor(factors, dtype=_EXACT)

    write_tensors(path, {**forms, SCALES: (_EXACT, (len(entries),))}, differences(), about)


def check_reference(reference: TensorFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless these are reference weights of tensors of these names and shapes."""
    if REFERENCE_KEY not in reference.metadata or dict(reference.shapes) != dict(shapes):
        raise ValueError(f"{reference.path} holds no reference weights of this model")


def _difference(average: Tensor, reference: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """(average - reference) / factor in `dtype`, flat slices at a time, and the factor."""
    flat, base = average.detach().reshape(-1), reference.reshape(-1)

    def parts() -> Iterator[tuple[int, Tensor]]:
        for start, length in slices(flat.numel(), DEVICE_SLICE):
            part = slice(start, start + length)
            yield start, flat[part].to("cpu", _EXACT) - base[part].to(_EXACT)

    shift = 0
    if dtype == torch.float16:
        largest = max((float(part.abs().max()) for _, part in parts()), default=0.0)
        shift = min(_LARGEST_SHIFT, _HIGHEST - math.frexp(largest)[1]) if largest else 0
    made = torch.empty(flat.numel(), dtype=dtype)
    for start, part in parts():
        made[start : start + part.numel()] = part.mul_(2.0**shift)
    return made.view(average.shape), 2.0**-shift


class StoredEma:
    """A snapshot that is read. shapes: of its tensors by name; dtype: what it holds them as.

    Raises UsageError: the file is damaged. ValueError: it is something else, or without its reference weights.
    """

    def __init__(self, path: Path, reference: Path) -> None:
        self._file = TensorFile(path)
        self.path = path
        self.dtype = self._file.metadata.get(SNAPSHOT_KEY, "")
        if self.dtype not in _DTYPES:
            raise ValueError(f"{path} is not a snapshot of an EMA")
        self.shapes = {name: shape for name, shape in self._file.shapes.items() if name != SCALES}
        self._reference: TensorFile | None = None
        self._factors = dict.fromkeys(self.shapes, 1.0)
        identity = self._file.metadata.get(REFERENCE_KEY)
        if identity is None:
            return
        if not reference.is_file():
            raise ValueError(f"{path} holds differences from {reference}, which is not there")
        self._reference = TensorFile(reference)
        check_reference(self._reference, self.shapes)
        if self._reference.metadata[REFERENCE_KEY] != identity:
            raise ValueError(f"{path} holds differences from other weights than those in {reference}")
        factors = self._file.load(SCALES).tolist() if SCALES in self._file.shapes else []
        if len(factors) != len(self.shapes):
            raise ValueError(f"{path} is damaged: {len(factors)} factors for {len(self.shapes)} tensors")
        self._factors = dict(zip(self.shapes, factors, strict=True))

    def part(self, name: str, where: slice) -> Tensor:
        """These elements of a tensor, counted as if it were flat: float64."""
        stored = self._stored(name, where)
        if self._reference is None:
            return stored
        return stored.add_(self._reference.load(name).reshape(-1)[where].double())

    def digits(self, name: str, where: slice) -> Tensor:
        """What the same elements are stored as, which is what has been rounded: float64, scale undone."""
        return self._stored(name, where)

    def release(self) -> None:
        """Give back the memory of what has been read."""
        for file in (self._file, self._reference):
            if file is not None:
                file.release()

    def _stored(self, name: str, where: slice) -> Tensor:
        return self._file.load(name).reshape(-1)[where].double().mul_(self._factors[name])


# ------------------------------------------------------------------ which tensor of a saved file is which


def places(count: int) -> Tensor:
    """Which elements of a flat tensor of `count` its samples are: int64, in order, the first always."""
    if count <= _ALL_OF:
        return torch.arange(count)
    return torch.arange(_SAMPLES) * (count - 1) // (_SAMPLES - 1)


def write_samples(path: Path, entries: Sequence[Entry], about: Mapping[str, str]) -> None:
    """Write what tells each tensor by: `places` of the weights as they are now, while they are saved.

    Raises OSError: it cannot be written.
    """
    chosen = {name: places(weights.numel()) for name, weights, _ in entries}
    forms = {name: (weights.dtype, tuple(chosen[name].shape)) for name, weights, _ in entries}
    samples = (weights.detach().reshape(-1)[chosen[name].to(weights.device)] for name, weights, _ in entries)
    write_tensors(path, forms, samples, about)
