"""Which measurements are made: each held-out image at one timestep in each of several equal parts of the range.

Noise and timestep of a measurement depend on the seed, the image's name and the part alone. So they are the same at
every validation, in every run, for raw weights and EMA, and whatever other images there are: differences between two
validations are differences of the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

_SEEDS = 2**31  # numpy takes 32 bits, and some generators are signed


@dataclass(frozen=True)
class Measurement:
    """One image at one timestep.

    number: the image's, from 0. part: which of the parts of the range of timesteps, from 0. seed: of all that is drawn.
    quantile: where in the script's own distribution of timesteps it is, above 0 and below 1.
    """

    number: int
    part: int
    seed: int
    quantile: float


def measurements(names: Sequence[str], parts: int, seed: int) -> list[Measurement]:
    """All measurements of a validation, image by image. names: of the images. Source: stratified sampling."""
    found = []
    for number, name in enumerate(names):
        for part in range(parts):
            digest = hashlib.sha256(f"{seed}/{_own_name(name)}/{part}".encode("utf-8", "backslashreplace")).digest()
            place = (int.from_bytes(digest[8:14], "big") + 0.5) / 2**48
            drawn = int.from_bytes(digest[:8], "big") % _SEEDS
            found.append(Measurement(number, part, drawn, (part + place) / parts))
    return found


def held_out(names: Iterable[str], share: float, seed: int) -> set[str]:
    """The images that a split takes away from training: at least one, and never all. Fewer than two: none."""
    ranked = sorted(
        set(names),
        key=lambda name: hashlib.sha256(f"{seed}/{_own_name(name)}".encode("utf-8", "backslashreplace")).digest(),
    )
    if len(ranked) < 2:
        return set()
    return set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])


def _own_name(name: str) -> str:
    """The file's name and its folder's: a data set that was moved keeps its noise."""
    return "/".join(PurePath(name.replace("\\", "/")).parts[-2:])
