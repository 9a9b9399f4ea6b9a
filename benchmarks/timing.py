"""Timing side by side: all candidates take turns within one run, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one candidate."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def ratio_to(self, other: Timing) -> tuple[float, float, float]:
        """How many times faster than `other`: median of the round-by-round ratios, and their quartiles."""
        ratios = [theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return middle, low, high


def take_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Run every candidate once to warm up, then `rounds` times in turn.

    clock: `time.process_time` is the fairer one for a single thread on a machine that others use as well.
    """
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            _finish()
            begin = clock()
            run()
            _finish()
            seconds[name].append(clock() - begin)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def copy_bandwidth(elements: int, device: str, rounds: int = 5) -> float:
    """Bytes a second that a plain copy moves, reads and writes counted; the best of a few rounds."""
    source, target = torch.rand(elements, device=device), torch.empty(elements, device=device)
    return 8 * elements / take_turns({"copy": lambda: target.copy_(source)}, rounds)["copy"].best


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Columns aligned, the first to the left."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in [header, *rows])
    ]
    return "\n".join(lines)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
