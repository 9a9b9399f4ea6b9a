"""Captions against their images, file by file, and what their text gives away: the guide's advice as rules."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.core.errors import KohyaExtError
from kohya_ext.dataset import layout, texts
from kohya_ext.dataset.findings import ADVICE, AuditFinding
from kohya_ext.dataset.layout import CAPTION_SUFFIX, CAPTION_SUFFIXES, IMAGE_SUFFIXES, files_in, require_extension
from kohya_ext.files.text_encoding import BOM

ALONE = ": Kohya would train it without a caption"
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


def check(
    folder: Path, *, recursive: bool = False, suffix: str = CAPTION_SUFFIX, token: str = ""
) -> list[AuditFinding]:
    """All findings about the captions in `folder`, by file.

    token: the rare word that stands for the concept; captions without it, and those that begin with it, are findings.
    """
    files = layout.training_files(folder) if recursive else sorted(files_in(folder, recursive=False))
    return check_files(folder, files, suffix=suffix, token=token)


def check_files(
    folder: Path, files: list[Path], *, suffix: str = CAPTION_SUFFIX, token: str = ""
) -> list[AuditFinding]:
    """The same about the images and captions among `files`, relative to the folder; masks have no captions."""
    require_extension(suffix)
    findings: list[AuditFinding] = []
    expected: set[Path] = set()
    for image in files:
        if image.suffix.lower() not in IMAGE_SUFFIXES or layout.is_mask(image):
            continue
        path = image.with_suffix(suffix)
        if path in expected:
            findings.append(AuditFinding("shared-caption", image.as_posix(), f"shares {path.name} with another image"))
            continue
        expected.add(path)
        findings += check_one(folder, image, path, token)
    for file in files:
        if file.suffix == suffix and file not in expected and not layout.is_mask(file):
            findings.append(AuditFinding("no-image", file.as_posix(), "has no image"))
    return findings


def check_one(folder: Path, image: Path, path: Path, token: str = "") -> Iterator[AuditFinding]:
    """The findings about the caption `path` of `image`."""
    name = path.as_posix()
    try:
        caption = texts.read(folder, path)
    except KohyaExtError as error:
        yield AuditFinding(
            "unreadable-caption", name, str(error).replace("; nothing was changed", "").removeprefix(f"{path} ")
        )
        return
    if caption is None:
        yield AuditFinding("no-caption", image.as_posix(), f"has no {path.name}{_instead(folder, image, path)}")
        return
    if not caption.text.strip():
        does = "trains the image without a caption" if caption.state.data else "stops at it"
        yield AuditFinding("empty-caption", name, f"is empty: Kohya {does}")
        return
    if caption.state.data.startswith(BOM):
        yield AuditFinding("byte-order-mark", name, "begins with a byte order mark, which Kohya takes for a character")
    if not caption.first_line:
        yield AuditFinding(
            "blank-first-line",
            name,
            "has an empty first line: Kohya reads only that one, and trains the image without a caption",
        )
        return
    for oddity in oddities(caption.text):
        yield AuditFinding("slip", name, oddity, ADVICE)
    yield from _advice(name, caption.first_line, token)


def _instead(folder: Path, image: Path, path: Path) -> str:
    """What happens to an image whose caption is not where it is looked for."""
    other = next(
        (one for one in CAPTION_SUFFIXES if one != path.suffix and (folder / path.with_suffix(one)).exists()), ""
    )
    if other:
        return (
            f", but {path.with_suffix(other).name}, which Kohya reads only with --caption_extension {other}: "
            f"set that, and check with --extension {other}"
        )
    class_ = layout.class_of(folder, image)
    return f": Kohya would train it as {class_!r}, from its folder's name" if class_ else ALONE


def _advice(name: str, text: str, token: str) -> Iterator[AuditFinding]:
    if not unicodedata.is_normalized("NFC", text):
        yield AuditFinding("not-normalized", name, "is not in Unicode's usual form (NFC)", ADVICE)
    if choice := wildcard_in(text):
        yield AuditFinding(
            "wildcard", name, f"holds {choice}: Kohya chooses one only with --enable_wildcard, and else trains it all",
            ADVICE,
        )  # fmt: skip
    if is_tag_list(text):
        yield AuditFinding("tag-list", name, "reads like a list of tags; the guide asks for a short sentence", ADVICE)
    for code, terms, what in (
        ("view", VIEW, "point of view"),
        ("background", BACKGROUND, "background"),
    ):
        found = words_in(text, terms)
        if found:
            advice = f"names the {what} ({', '.join(found)}): omit it unless you want to prompt for it"
            yield AuditFinding(code, name, advice, ADVICE)
    if not token:
        return
    if not words_in(text, (token,)):
        yield AuditFinding("no-token", name, f"does not contain the token {token!r}")
    elif text.casefold().startswith(token.casefold()):
        yield AuditFinding(
            "token-first", name, f"begins with the token {token!r}: put it next to what it names", ADVICE
        )


def words_in(text: str, terms: tuple[str, ...]) -> list[str]:
    """Those of `terms` that are in `text` as whole words, in any case."""
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
    if unseen := re.search("[\u00ad\u200b\u2060\ufeff]", text):
        yield f"contains an invisible character (U+{ord(unseen[0]):04X}), which is trained like any other: delete it"
