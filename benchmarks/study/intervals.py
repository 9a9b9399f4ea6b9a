"""Means with 95 % intervals over a handful of seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Interval:
    """mean +- half, 95 %, by Student's t; inf when one of the runs diverged."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}" if math.isfinite(self.mean) else "diverged"


def interval(values: Sequence[float]) -> Interval:
    """Of 1 to 10 values; one has no interval."""
    if not all(math.isfinite(value) for value in values):
        return Interval(math.inf, 0.0)
    if len(values) == 1:
        return Interval(values[0], 0.0)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.mean(values), STUDENT_T[len(values)] * spread)
