"""Whether what a model draws is nearer to its training images than to held-out ones: memorizing, before whole copies.

A model that has learned what all images have in common draws as near to the ones as to the others. Only images whose
captions are prompted count, as many training as held-out ones, since a caption draws near to its own image for a good
reason. How likely the result is by chance is counted, without assuming anything about the images or the samples: over
the ways in which half of these images could have been the training images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.memorization import Likeness
from kohya_ext.evaluation.promptfile import Prompt
from kohya_ext.evaluation.prompts import CAPTIONS, HELD_OUT

FEWEST = 4  # images of a kind: with three of each the clearest result would come by chance once in 20 times
SIDE = 16  # pixels
MOST_WAYS = 20_000  # of halving the images that are counted; where there are more, as many are drawn at random
AT_ONCE = 1 << 22  # likenesses


class Colours:
    """The correlation of two images' colours at 16 x 16 pixels: where is what, however faint or blurred it is."""

    name = "correlation of the colours at 16 x 16 pixels"

    def features(self, image: Any) -> Any:
        """Its pixels without their mean, as a unit vector."""
        from PIL import Image

        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float64).ravel()
        pixels = pixels - pixels.mean()
        return pixels / max(float(np.linalg.norm(pixels)), 1.0)

    def likeness(self, one: Any, other: Any) -> float:
        """From -1 to 1; 0 where one of them has a single colour."""
        return float(one @ other)


@dataclass(frozen=True)
class Comparison:
    """Of `samples` images `nearer` are nearer to a training than to a held-out image; one that is as near counts half.

    chance: how often it would be as many or more if any half of these images were taken for the training images.
    """

    samples: int
    nearer: float
    chance: float


def compare(likenesses: Sequence[Sequence[float]]) -> Comparison:
    """likenesses: of each sample to each image, the training images first, then as many held-out ones."""
    table = np.array(likenesses, dtype=np.float64)
    images = table.shape[1]
    nearer, found, ways = float(_nearer(table, np.arange(images)[None] < images // 2)[0]), 0, 0
    for halves in _halvings(images, max(1, AT_ONCE // table.size)):
        found += int((_nearer(table, halves) >= nearer).sum())
        ways += len(halves)
    return Comparison(len(table), nearer, found / ways)


def _nearer(table: np.ndarray[Any, Any], halves: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """For each way to halve the images: how many samples are nearer to one in the half than to all others."""
    here = np.where(halves[:, None, :], table, -np.inf).max(axis=2)
    there = np.where(halves[:, None, :], -np.inf, table).max(axis=2)
    return np.asarray((here > there).sum(axis=1) + (here == there).sum(axis=1) / 2)


def _halvings(images: int, at_once: int) -> Iterator[np.ndarray[Any, Any]]:
    """Which images are in the first half, `at_once` ways at a time: all ways, or the true one and random ones."""
    half = images // 2
    if math.comb(images, half) <= MOST_WAYS:
        ways: Iterator[Any] = itertools.combinations(range(images), half)
    else:
        chance = np.random.default_rng(0)
        others = (chance.permutation(images)[:half] for _ in range(MOST_WAYS - 1))
        ways = itertools.chain([range(half)], others)
    while some := list(itertools.islice(ways, at_once)):
        halves = np.zeros((len(some), images), dtype=bool)
        np.put_along_axis(halves, np.array(some), True, axis=1)
        yield halves


class PromptedImages:
    """The training and held-out images whose captions are prompted, as many of each.

    Raises UsageError where there are too few of either kind.
    """

    def __init__(
        self,
        training: Path,
        held_out: Path,
        prompts: Sequence[Prompt],
        measure: Likeness,
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self.measure = measure
        paths = {CAPTIONS: training, HELD_OUT: held_out}
        sources = {kind: _sources(prompts, kind) for kind in paths}
        count = min(map(len, sources.values()))
        if count < FEWEST:
            raise UsageError(
                f"--held-out needs prompts of at least {FEWEST} training and {FEWEST} held-out captions, with the "
                "image that each belongs to: `kohya-ext prompts FOLDER --held-out DIR` writes them"
            )
        chosen = [(kind, source) for kind in paths for source in sources[kind][:count]]
        self._images = set(chosen)
        self._features = []
        for done, (kind, source) in enumerate(chosen, 1):
            self._features.append(self._read(paths[kind] / source))
            progress("images whose captions are prompted", done, len(chosen))

    def likenesses(self, prompt: Prompt, image: Any) -> tuple[float, ...]:
        """Those of a PIL image, drawn from `prompt`, to each of the images; () where the prompt is none of theirs."""
        if (prompt.section, prompt.source) not in self._images:
            return ()
        features = self.measure.features(image)
        return tuple(self.measure.likeness(features, known) for known in self._features)

    def _read(self, path: Path) -> Any:
        from kohya_ext.files.image import decoding, opened

        try:
            with opened(path) as image, decoding(image, reduced_to=512):
                return self.measure.features(image)
        except Exception as error:  # decoders raise what they like on broken input
            raise UsageError(f"{path}, whose caption is prompted, cannot be read ({error}): see `audit`") from error


def _sources(prompts: Sequence[Prompt], kind: str) -> list[str]:
    return list(dict.fromkeys(prompt.source for prompt in prompts if prompt.section == kind and prompt.source))
