"""How evenly a data set covers styles and points of view, as far as its captions tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from kohya_ext.dataset.caption_check import words_in
from kohya_ext.dataset.findings import ADVICE, AuditFinding

STYLES = {
    "photograph": ("photo", "photograph", "photography", "cosplay", "selfie", "snapshot"),
    "anime": ("anime", "manga", "anime screencap", "cel shaded"),
    "drawing": ("drawing", "sketch", "illustration", "lineart", "line art", "comic", "cartoon", "digital art"),
    "painting": ("painting", "oil painting", "watercolor", "watercolour", "gouache"),
    "3D": ("3d render", "3d", "cgi", "render", "screenshot"),
}
VIEWS = {
    "close-up": ("close-up", "closeup", "close up", "portrait", "headshot"),
    "medium": ("medium shot", "upper body", "half body", "cowboy shot"),
    "full length": ("full body", "full length", "full-length", "wide shot", "long shot"),
}
LOPSIDED = 0.8  # share of one kind among those that name one
ENOUGH = 10  # captions that must name one before anything is said

# The guide: fewer than 20 images are too few, 20 to 60 enough with its newest config, 150 the most that helps.
FEWEST, ENOUGH_IMAGES, MOST = 20, 60, 150


def kinds(captions: Iterable[str], groups: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """How many captions name each kind; one that names none is not counted."""
    counts = Counter(next((kind for kind, terms in groups.items() if words_in(text, terms)), None) for text in captions)
    return {kind: counts[kind] for kind in groups if counts[kind]}


def how_many(images: int) -> str:
    """What the guide says to so many images of one concept."""
    if images < FEWEST:
        return f"fewer than the {FEWEST} that the guide asks for"
    if images <= ENOUGH_IMAGES:
        return f"within the {FEWEST} to {ENOUGH_IMAGES} that are enough with the guide's newest config"
    if images <= MOST:
        return f"more than the {ENOUGH_IMAGES} that the guide's newest config needs, within its {MOST}"
    return f"more than the {MOST} that the guide goes to"


def advice(images: int, styles: Mapping[str, int], views: Mapping[str, int]) -> Iterator[AuditFinding]:
    """What the guide says to a data set of this size and these kinds."""
    if images < FEWEST:
        yield AuditFinding(
            "few-images", "", f"{images} images: the guide asks for at least {FEWEST} for a concept", ADVICE
        )
    elif images > MOST:
        yield AuditFinding(
            "many-images", "", f"{images} images: beyond {MOST} for one concept the guide saw no gain", ADVICE
        )
    for what, counts in (("style", styles), ("point of view", views)):
        named = sum(counts.values())
        if named < ENOUGH or (len(counts) < 2 and what == "style"):
            continue  # one style throughout may be just what is wanted
        kind, most = max(counts.items(), key=lambda entry: entry[1])
        if most >= LOPSIDED * named:
            yield AuditFinding(
                f"lopsided-{what.split()[-1]}", "",
                f"{most} of {named} captions that name a {what} say {kind}: the guide advises to balance them", ADVICE,
            )  # fmt: skip
