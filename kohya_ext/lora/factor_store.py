"""Factors waiting on the disk between the pass over a model and the files that are made of them.

One pass can feed several files of different ranks, and ranks may depend on the spectra of all modules; a LoRA of rank
512 is larger than the memory that a model extraction is allowed. Cutting a stored factor to a lower rank is cutting
columns: singular directions come in order, and rounding works element by element.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.files.atomic import scratch
from kohya_ext.lora.svd import LowRank


@dataclass(frozen=True)
class StoredModule:
    """One decomposed module whose factors are in the spool.

    shape: of the weight, (out, in) or (out, in, kernel, kernel). values: (r,) float64, of the r directions stored.
    rounding: (r,) float64, squared error that storing each direction adds. energy: squared norm of the weight
    (difference). residual: squared norm of what rank r leaves over. scale: what the factors are multiplied with when
    used (alpha / rank). dtype: what the factors are written in, where it is not the spool's.
    """

    name: str
    shape: tuple[int, ...]
    values: Tensor
    rounding: Tensor
    energy: float
    residual: float
    method: str
    scale: float
    offset: int
    dtype: torch.dtype | None = None

    @property
    def rank(self) -> int:
        """How many singular values there are."""
        return len(self.values)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the weight as a matrix."""
        width = 1
        for length in self.shape[1:]:
            width *= length
        return self.shape[0], width

    @property
    def is_wide_kernel(self) -> bool:
        """A convolution larger than 1x1."""
        return len(self.shape) > 2 and any(length > 1 for length in self.shape[2:])

    @property
    def used_energy(self) -> float:
        """Squared norm of what the module adds to the weight, its scale included."""
        return self.energy * self.scale**2

    def error(self, rank: int) -> float:
        """The part of the weight's norm that is missing (or wrong) at `rank`: truncation and rounding."""
        if not self.energy:
            return 0.0
        squared = self.residual + float(self.values[rank:].square().sum()) + float(self.rounding[:rank].sum())
        return float((squared / self.energy) ** 0.5)


class Spool:
    """A scratch file next to `beside`, gone when the spool is closed.

    dtype: what the factors will be written in, by which rounding is measured. exact: keep them in float32 until then,
    because they are still to be multiplied with something.
    """

    def __init__(self, beside: Path, dtype: torch.dtype, *, exact: bool = False) -> None:
        self.dtype = torch.float32 if exact else dtype
        self._written = dtype
        self._closing = contextlib.ExitStack()
        self._file = self._closing.enter_context(scratch(beside))
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        found: LowRank,
        scale: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> StoredModule:
        """Store the factors of a module. dtype: its own in the file (needs an exact spool). Raises OSError."""
        stored = [self._store(factor, dtype or self._written) for factor in (found.up.T, found.down)]
        values = found.values[: len(found.down)]
        rounding = torch.stack([lost for _, lost in stored]).sum(0) * values
        module = StoredModule(
            name, shape, values, rounding, found.energy, found.residual, found.method, scale, self._end, dtype
        )
        for rounded, _ in stored:
            self._file.seek(self._end)
            self._file.write(memoryview(rounded.view(torch.uint8).numpy()))
            self._end += rounded.numel() * rounded.element_size()
        return module

    def factors(self, module: StoredModule, rank: int) -> tuple[Tensor, Tensor]:
        """(up, down) at `rank`: (out, rank) and (rank, in), in the spool's dtype. Raises OSError."""
        height, width = module.sides
        size = torch.empty((), dtype=self.dtype).element_size()
        up = self._load(module.offset, rank, height)
        down = self._load(module.offset + module.rank * height * size, rank, width)
        return up.T.contiguous(), down

    def _store(self, rows: Tensor, written: torch.dtype) -> tuple[Tensor, Tensor]:
        """The rows in the spool's type, and the squared error that writing adds to each."""
        rounded = rows.to(written)
        lost = torch.linalg.vector_norm(rounded.float() - rows, dim=1, dtype=torch.float64).square()
        kept = rounded if self.dtype == written else rows.to(self.dtype)
        return kept.cpu().contiguous(), lost.cpu()

    def _load(self, offset: int, rows: int, columns: int) -> Tensor:
        tensor = torch.empty(rows, columns, dtype=self.dtype)
        self._file.flush()
        self._file.seek(offset)
        self._file.readinto(memoryview(tensor.view(torch.uint8).numpy()))
        return tensor
