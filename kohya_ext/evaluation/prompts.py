"""The prompts by which the guide judges a model: captions word for word, something near them, quite other things.

A caption that gives back its training image means overtraining; a near one shows what was learnt; people, objects and
landscapes, four seeds each, show what else the training has changed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.promptfile import Prompt

CAPTIONS, NEAR, GENERIC = "captions, word for word", "near the captions", "generic"
HELD_OUT = "captions of held-out images"
BATCH = 4  # seeds of every generic prompt
SUBJECTS = {
    "people": (
        "photo of an old fisherman mending a net",
        "two children playing chess in a park",
        "a woman in a yellow raincoat waiting for a bus",
        "portrait of a bearded man with round glasses",
    ),
    "objects": (
        "a red bicycle leaning on a brick wall",
        "a bowl of ripe peaches on a wooden table",
        "an open pocket watch on a stack of letters",
        "a small blue teapot with two cups",
    ),
    "landscapes": (
        "a lighthouse on a cliff in a storm",
        "a mountain lake at sunrise with mist on the water",
        "a narrow street of a medieval town at night",
        "rolling hills with a winding road in autumn",
    ),
}
PLACES = ("reading a book in a library", "made of paper, on a desk", "under water", "in a crowded market")
# words that promise another one: nothing ends with them
JOINING = frozenset(("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"))
_PIECE = re.compile(r"\s*,\s*")


@dataclass(frozen=True)
class CaptionedImage:
    """A caption and the image it belongs to, relative to the data set."""

    text: str
    image: str


@dataclass(frozen=True)
class PromptSettings:
    """count: captions taken word for word, as many near ones, and generic subjects of each kind. trigger: the token."""

    count: int = 4
    seed: int = 1
    width: int = 1024
    height: int = 1024
    steps: int = 30
    cfg: float = 7.0
    negative: str = ""
    trigger: str = ""


def make(
    captions: Sequence[CaptionedImage], settings: PromptSettings, held_out: Sequence[CaptionedImage] | None = None
) -> list[Prompt]:
    """The prompts, the same ones for the same captions and settings. Raises UsageError without any caption.

    With captions of held-out images, as many of them are taken word for word as of the others. Each has a seed of its
    own then: from one noise a model draws much the same with any caption, and such images count as one.
    """
    distinct = _distinct(captions)
    chance = random.Random(f"{settings.seed}")  # noqa: S311 - a choice of prompts, no secret
    texts = sorted(distinct)
    held = {} if held_out is None else _distinct(held_out)
    count = min(settings.count, len(texts), len(held) or len(texts))
    chosen = sorted(chance.sample(texts, count))
    others = sorted(random.Random(f"{HELD_OUT} {settings.seed}").sample(sorted(held), count if held else 0))  # noqa: S311

    def prompt(text: str, section: str, seed: int, source: str = "") -> Prompt:
        return Prompt(
            text,
            settings.width,
            settings.height,
            settings.steps,
            settings.cfg,
            seed,
            settings.negative,
            section,
            source,
        )

    seeds = (settings.seed + (number if held else 0) for number in range(2 * count))
    made = [prompt(text, CAPTIONS, next(seeds), distinct[text].image) for text in chosen]
    made += [prompt(text, HELD_OUT, next(seeds), held[text].image) for text in others]
    made += [prompt(text, NEAR, settings.seed) for text in _near(texts, settings, chance)]
    for kind, subjects in SUBJECTS.items():
        for text in chance.sample(subjects, min(settings.count, len(subjects))):
            made += [prompt(text, f"{GENERIC}: {kind}", settings.seed + number) for number in range(BATCH)]
    return made


def _distinct(captions: Sequence[CaptionedImage]) -> dict[str, CaptionedImage]:
    """Text -> the first image that has it. Raises UsageError without any."""
    found = {" ".join(one.text.split()): one for one in sorted(captions, key=lambda one: one.image, reverse=True)}
    found.pop("", None)
    if not found:
        raise UsageError(
            "there are no captions to make prompts from; `kohya-ext captions FOLDER` makes them from file names"
        )
    return found


def _near(texts: Sequence[str], settings: PromptSettings, chance: random.Random) -> list[str]:
    """Distinct prompts of which none is a caption: shortened, mixed of two, the trigger where it has never been."""
    known = {text.casefold() for text in texts}
    near: list[str] = []
    for text in _candidates(texts, settings.trigger, chance):
        if len(near) == settings.count:
            break
        if text.strip(" ,.;") and text.casefold() not in known:
            known.add(text.casefold())
            near.append(text)
    return near


def _candidates(texts: Sequence[str], trigger: str, chance: random.Random) -> Iterator[str]:
    """More than enough, the kinds in turn."""
    places = [f"{trigger} {place}" for place in chance.sample(PLACES, len(PLACES))] if trigger else []
    for turn in range(8 * len(texts) + 8):
        first, *others = chance.sample(texts, min(2, len(texts)))
        yield _with(trigger, _shortened(first))
        yield from (_with(trigger, _mixed(first, other)) for other in others)
        if turn < len(places):
            yield places[turn]


def _shortened(text: str) -> str:
    """The first half of a caption: whole pieces between commas where there are several, else words."""
    pieces = _PIECE.split(text)
    if len(pieces) > 1:
        return ", ".join(pieces[: (len(pieces) + 1) // 2])
    words = text.split()
    words = words[: max(1, (len(words) + 1) // 2)]
    while len(words) > 1 and words[-1].casefold() in JOINING:
        words.pop()
    return " ".join(words)


def _mixed(first: str, second: str) -> str:
    """How one caption begins and another ends."""
    words = second.split()
    return f"{_shortened(first).rstrip('.,;')}, {' '.join(words[len(words) // 2 :])}"


def _with(trigger: str, text: str) -> str:
    """The trigger put in front where cutting has lost it."""
    return text if not trigger or trigger.casefold() in text.casefold() else f"{trigger}, {text}"
