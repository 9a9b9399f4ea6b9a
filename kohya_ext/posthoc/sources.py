"""What EMAs are mixed from: saved model files, or snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from kohya_ext.core.errors import UsageError
from kohya_ext.ema.snapshot import StoredEma
from kohya_ext.posthoc.snapshots import Snapshot
from kohya_ext.spec.outputs import REFERENCE_FILE
from kohya_ext.tensors.tensorfile import DTYPE_NAMES, TensorFile

# half of the last digit, relative to the value at most, of the types that weights are saved in
ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
_OF_SNAPSHOTS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class WeightSource(Protocol):
    """One of the averages that are mixed, of which a part at a time is read."""

    def part(self, name: str, where: slice) -> Tensor:
        """These elements of a tensor, counted as if it were flat: float64."""

    def rounded(self, name: str, where: slice) -> Tensor:
        """How much of each of them saving may have rounded away: float64."""

    def release(self) -> None:
        """Give back the memory of what has been read."""


class _File:
    """A model file."""

    def __init__(self, path: Path) -> None:
        self._file = TensorFile(path)

    def part(self, name: str, where: slice) -> Tensor:
        return self._file.load(name).reshape(-1)[where].double()

    def rounded(self, name: str, where: slice) -> Tensor:
        stored = self._file.load(name)
        return stored.reshape(-1)[where].double() * ROUNDING.get(DTYPE_NAMES[stored.dtype], 0.0)

    def release(self) -> None:
        self._file.release()


class _Stored:
    """A snapshot, whose differences are what has been rounded."""

    def __init__(self, path: Path) -> None:
        try:
            self._ema = StoredEma(path, path.with_name(REFERENCE_FILE))
        except ValueError as error:
            raise UsageError(str(error)) from error

    def part(self, name: str, where: slice) -> Tensor:
        return self._ema.part(name, where)

    def rounded(self, name: str, where: slice) -> Tensor:
        return self._ema.digits(name, where) * ROUNDING[_OF_SNAPSHOTS[self._ema.dtype]]

    def release(self) -> None:
        self._ema.release()


def opened(snapshot: Snapshot) -> WeightSource:
    """The weights of a saved file or a snapshot. Raises UsageError."""
    return _Stored(snapshot.path) if snapshot.stored else _File(snapshot.path)
