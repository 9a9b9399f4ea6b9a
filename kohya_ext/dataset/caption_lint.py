"""What the text of a caption gives away about itself: the guide's advice on wording, as rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST_TAGS = 3  # more short pieces between commas than this read like a list of tags
WORDS_OF_A_TAG = 3

# The guide: what is named in a caption is not learnt as part of the concept, so these belong in one only when they are
# to be asked for later.
VIEW = (
    "close-up", "closeup", "close up", "full body", "full length", "medium shot", "long shot", "wide shot",
    "from above", "from below", "from behind", "side view", "front view", "back view", "rear view", "profile view",
    "bird's eye view", "low angle", "high angle", "pov", "point of view", "headshot", "cowboy shot", "upper body",
)  # fmt: skip
BACKGROUND = (
    "background", "backdrop", "in front of a wall", "white wall", "studio lighting", "blurred background", "bokeh",
    "indoors", "outdoors",
)  # fmt: skip


def words_in(text: str, terms: tuple[str, ...]) -> list[str]:
    """Those of `terms` that stand in `text` as whole words, in any case."""
    return [term for term in terms if re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text, re.IGNORECASE)]


def is_tag_list(text: str) -> bool:
    """True for `1girl, solo, long hair, smile`: most of its pieces between commas have only a word or three."""
    pieces = [piece.split() for piece in text.split(",") if piece.strip()]
    short = sum(len(piece) <= WORDS_OF_A_TAG for piece in pieces)
    return len(pieces) > MOST_TAGS and short * 3 >= len(pieces) * 2


def wildcard_in(text: str) -> str:
    """The first `{a|b}` in the text, "" where there is none; doubled braces are meant as braces."""
    match = re.search(r"\{[^{}|]*\|[^{}]*\}", re.sub(r"\{\{|\}\}", "", text))
    return match[0] if match else ""


def oddities(text: str) -> Iterator[str]:
    """What looks like a slip: nothing that Kohya would stop at."""
    if "\n" in text.strip("\n"):
        yield "has more than one line: Kohya reads only the first (with --enable_wildcard, one by chance)"
    if "\t" in text or "  " in text:
        yield "has tabs or spaces in a row"
    if re.search(r",\s*,", text) or text.strip().startswith(","):
        yield "has an empty piece between commas"
    if text != text.strip():
        yield "begins or ends with a space"
    if "\N{REPLACEMENT CHARACTER}" in text or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
        yield "holds characters that cannot be meant"
