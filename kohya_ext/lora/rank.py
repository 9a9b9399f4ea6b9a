"""How many singular values a module keeps."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DYNAMIC = ("sv_ratio", "sv_fro", "sv_cumulative")
NEGLIGIBLE = 1e-6  # a module whose first singular value is not above this is kept at rank 1, as sd-scripts does


@dataclass(frozen=True)
class Spectrum:
    """What choosing a rank needs to know of a module.

    values: (r,) float64 on the CPU, descending, as many as are kept at most. energy: squared norm of the whole matrix.
    bytes_per_rank: what one more rank costs in the file.
    """

    values: Tensor
    energy: float
    bytes_per_rank: int


def by_energy(spectrum: Spectrum, part: float) -> int:
    """The smallest rank that keeps `part` of the squared norm, or all values that there are."""
    return _first(spectrum.values.square().cumsum(0), part * spectrum.energy)


def dynamic(values: Tensor, method: str, parameter: float, limit: int) -> int:
    """The rank by a rule of sd-scripts' resize_lora.py (v0.11.1; before it, the same rules kept one value more).

    sv_ratio: the values above the largest divided by `parameter`. sv_fro: `parameter` of the Frobenius norm.
    sv_cumulative: `parameter` of the sum of the values. limit: the highest rank allowed.
    """
    if not len(values) or float(values[0]) <= NEGLIGIBLE:
        return 1
    if method == "sv_ratio":
        rank = int((values > values[0] / parameter).sum())
    elif method == "sv_fro":
        rank = _first(values.square().cumsum(0), parameter**2 * float(values.square().sum()))
    elif method == "sv_cumulative":
        rank = _first(values.cumsum(0), parameter * float(values.sum()))
    else:
        raise ValueError(f"no dynamic method {method!r}")
    return max(1, min(rank, limit, len(values)))


def by_size(spectra: Sequence[Spectrum], budget: int) -> list[int] | None:
    """Ranks that fill `budget` bytes with the most energy; every module keeps at least one. None: not even that fits.

    Greedy by energy gained a byte, which is optimal up to the last rank since values descend within a module.
    """
    ranks = [1] * len(spectra)
    left = budget - sum(spectrum.bytes_per_rank for spectrum in spectra)
    if left < 0:
        return None
    heap = [(-_gain(spectrum, 1), index) for index, spectrum in enumerate(spectra) if len(spectrum.values) > 1]
    heapq.heapify(heap)
    while heap:
        _, index = heapq.heappop(heap)
        spectrum = spectra[index]
        if spectrum.bytes_per_rank > left:
            continue
        left -= spectrum.bytes_per_rank
        ranks[index] += 1
        if ranks[index] < len(spectrum.values):
            heapq.heappush(heap, (-_gain(spectrum, ranks[index]), index))
    return ranks


def _gain(spectrum: Spectrum, rank: int) -> float:
    return float(spectrum.values[rank]) ** 2 / spectrum.bytes_per_rank


def _first(cumulative: Tensor, target: float) -> int:
    """How many values it takes until the running sum reaches `target`."""
    found = int(torch.searchsorted(cumulative, torch.tensor(target, dtype=cumulative.dtype)))
    return min(found + 1, len(cumulative))
