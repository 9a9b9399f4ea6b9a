"""What `grid` records about each model that it has compared, in a file next to its page; `report` reads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

FILE = "grid.json"
NOT_BY_CHANCE = 0.05  # results that come less often by chance are told as such


@dataclass(frozen=True)
class Judged:
    """A model: the stem of its file. Of `images` there are `copies` near copies of training images.

    Of `samples` images `nearer` are nearer to a training than to a held-out image; chance: how often that would come by
    chance. None without held-out images.
    """

    model: str
    images: int
    copies: int
    samples: int | None = None
    nearer: float | None = None
    chance: float | None = None

    @property
    def memorizes(self) -> bool:
        """Whether its images are nearer to training than to held-out images, more than by chance."""
        return self.chance is not None and self.chance < NOT_BY_CHANCE

    def told(self) -> str:
        """How many images are nearer to a training than to a held-out one; "" without held-out images."""
        if self.samples is None or self.nearer is None or self.chance is None:
            return ""
        return f"{self.nearer:g} of {self.samples} (by chance {self.samples / 2:g}; p = {self.chance:.2g})"


def encoded(models: Iterable[Judged]) -> str:
    """The file's text."""
    return json.dumps({"models": [dataclasses.asdict(one) for one in models]}, indent=1) + "\n"


def decoded(text: str) -> list[Judged]:
    """What is in the file. Raises ValueError where it is not one of these."""
    try:
        return [_checked(Judged(**values)) for values in json.loads(text)["models"]]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not what grid records: {error}") from error


def _checked(one: Judged) -> Judged:
    compared = (one.samples, one.nearer, one.chance)
    if (
        not isinstance(one.model, str)
        or not all(_is_number(value) for value in (one.images, one.copies))
        or not (compared == (None, None, None) or all(_is_number(value) for value in compared))
    ):
        raise TypeError(f"{one}")
    return one


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
