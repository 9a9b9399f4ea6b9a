"""The mean loss over held-out images, with its 95 % interval.

The images are the sample; the timesteps of one image are not independent of each other, so each image counts once, with
the mean over its timesteps. The same images and noise serve every validation: two of them are compared image by image,
which is far more precise than the two intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its 95 % interval: None where one image tells nothing about others."""

    mean: float
    margin: float | None

    def __str__(self) -> str:
        return f"{self.mean:.5g}" + ("" if self.margin is None else f" ± {self.margin:.2g}")


def estimate(losses: Sequence[float]) -> Estimate:
    """Of the losses of the images, one each. Raises ValueError where there are none."""
    if not losses:
        raise ValueError("no losses to estimate from")
    if len(losses) < 2:
        return Estimate(losses[0], None)
    if not all(math.isfinite(loss) for loss in losses):  # the standard library refuses to spread these
        return Estimate(fmean(losses), None)
    return Estimate(fmean(losses), quantile(len(losses) - 1) * stdev(losses) / math.sqrt(len(losses)))


def difference(losses: Sequence[float], before: Sequence[float]) -> Estimate:
    """How much `losses` are above those of the same images `before`."""
    return estimate([now - then for now, then in zip(losses, before, strict=True)])


def by_image(losses: Sequence[float], parts: int) -> list[float]:
    """The mean of each image, from the losses in the order of `measurements`."""
    return [fmean(losses[start : start + parts]) for start in range(0, len(losses), parts)]


def quantile(degrees: int) -> float:
    """Student's t for a two-sided 95 % interval; from 31 degrees of freedom on by the Cornish-Fisher expansion."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
