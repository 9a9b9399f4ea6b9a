"""Captions against their images, file by file, and what their text gives away: the guide's advice as rules."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kohya_ext.core.errors import KohyaExtError, UsageError
from kohya_ext.dataset import layout, texts
from kohya_ext.dataset import metadata_file as metadata
from kohya_ext.dataset.findings import ADVICE, AuditFinding
from kohya_ext.dataset.layout import CAPTION_SUFFIX, CAPTION_SUFFIXES, IMAGE_SUFFIXES, files_in, require_extension
from kohya_ext.dataset.metadata_file import MetadataFile
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
    folder: Path, *, recursive: bool = False, suffix: str = CAPTION_SUFFIX, token: str = "", in_json: Path | None = None
) -> list[AuditFinding]:
    """All findings about the captions in `folder`, by file.

    token: the rare word that stands for the concept; captions without it, and those that begin with it, are findings.
    in_json: the metadata of a fine-tune, whose captions are judged in the place of caption files.
    """
    files = layout.training_files(folder) if recursive else sorted(files_in(folder, recursive=False))
    listed, findings = listed_in(folder, files, in_json)
    findings += check_files(folder, files, suffix=suffix, token=token, listed=listed, alone=in_json is not None)
    return findings


def images_of(files: list[Path]) -> list[Path]:
    """The images among `files` that have captions."""
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and not layout.is_mask(file)]


def listed_in(folder: Path, files: list[Path], in_json: Path | None) -> tuple[MetadataFile | None, list[AuditFinding]]:
    """What the metadata of a fine-tune says, the named one or that in the folder. Raises UsageError for a named one."""
    found = in_json or metadata.find(folder)
    if found is None:
        return None, []
    images = images_of(files)
    try:
        listed = metadata.read(found, folder, images)
    except UsageError as error:
        if in_json:
            raise
        return None, [AuditFinding("metadata", found.name, str(error).removeprefix(str(found)).lstrip(": "))]
    return listed, list(listed.check(images)) if in_json else []


def check_files(
    folder: Path, files: list[Path], *, suffix: str = CAPTION_SUFFIX, token: str = "",
    listed: MetadataFile | None = None, alone: bool = False,
) -> list[AuditFinding]:  # fmt: skip
    """The same about the images and captions among `files`, relative to the folder; masks have no captions.

    listed: captions from a metadata file. alone: only those are trained; else they are for images without a file.
    """
    require_extension(suffix)
    if listed and alone:
        return [
            finding for image in images_of(files) if image in listed.captions
            for finding in check_listed(listed, image, token)
        ]  # fmt: skip
    findings: list[AuditFinding] = []
    expected: set[Path] = set()
    strays = _strays(files, suffix)
    present = set(files)
    for image in images_of(files):
        if listed and image in listed.captions and image.with_suffix(suffix) not in present:
            findings += check_listed(listed, image, token)
            continue
        path = image.with_suffix(suffix)
        if path in expected:
            findings.append(AuditFinding("shared-caption", image.as_posix(), f"shares {path.name} with another image"))
            continue
        expected.add(path)
        findings += check_one(folder, image, path, token, strays.get(image.parent, ()))
        if listed and (other := _differs(folder, listed, image, path)):
            findings.append(other)
    for file in files:
        if file.suffix == suffix and file not in expected and not layout.is_mask(file):
            findings.append(AuditFinding("no-image", file.as_posix(), "has no image"))
    return findings


def check_listed(listed: MetadataFile, image: Path, token: str = "") -> Iterator[AuditFinding]:
    """The findings about the caption of `image` in a metadata file."""
    name, text = image.as_posix(), listed.captions[image]
    first = texts.first_line(text)
    if not first:
        does = "trains it without a caption, and stops at it up to v0.4" if not text.strip() else "reads the first line"
        yield AuditFinding("empty-caption", name, f"has an empty caption in {listed.path.name}: Kohya {does}")
        return
    yield from _unmeant(name, text)
    for oddity in oddities(text):
        yield AuditFinding("slip", name, oddity, ADVICE)
    yield from _advice(name, first, token)


def _differs(folder: Path, listed: MetadataFile, image: Path, path: Path) -> AuditFinding | None:
    """Where a caption file was edited after the metadata was made."""
    try:
        caption = texts.read(folder, path)
    except KohyaExtError:
        return None
    theirs = listed.captions.get(image)
    # a caption file may be one of two that were merged: its text is then a part of what is listed
    if theirs is None or caption is None or caption.first_line in theirs:
        return None
    text = (
        f"is not what {listed.path.name} has for its image, which the Finetuning tab trains: merge the captions again"
    )
    return AuditFinding("old-metadata", path.as_posix(), text, ADVICE)


def _unmeant(name: str, text: str) -> Iterator[AuditFinding]:
    """Files of another kind: what they hold is trained letter by letter."""
    first = texts.first_line(text)
    if text.count("\0") * 3 > len(text):
        yield AuditFinding(
            "not-text",
            name,
            "is UTF-16 without a mark: Kohya trains its letters with zeros between them; save as UTF-8",
        )
    elif _is_json(text):
        yield AuditFinding(
            "json-caption", name, f"is JSON: Kohya trains the text {first[:60]!r} itself, not what it says"
        )


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def check_one(
    folder: Path, image: Path, path: Path, token: str = "", strays: Sequence[Path] = ()
) -> Iterator[AuditFinding]:
    """The findings about the caption `path` of `image`. strays: captions in its folder that have no image."""
    name = path.as_posix()
    try:
        caption = texts.read(folder, path)
    except KohyaExtError as error:
        yield AuditFinding(
            "unreadable-caption", name, str(error).replace("; nothing was changed", "").removeprefix(f"{path} ")
        )
        return
    if caption is None:
        yield AuditFinding("no-caption", image.as_posix(), f"has no {path.name}{_instead(folder, image, path, strays)}")
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
    yield from _unmeant(name, caption.text)
    for oddity in oddities(caption.text):
        yield AuditFinding("slip", name, oddity, ADVICE)
    yield from _advice(name, caption.first_line, token)


def _instead(folder: Path, image: Path, path: Path, strays: Sequence[Path]) -> str:
    """What happens to an image whose caption is not where it is looked for."""
    other = next(
        (one for one in CAPTION_SUFFIXES if one != path.suffix and (folder / path.with_suffix(one)).exists()), ""
    )
    if other:
        return (
            f", but {path.with_suffix(other).name}, which Kohya reads only with --caption_extension {other}: "
            f"set that, and check with --extension {other}"
        )
    if near := _near_miss(image, strays):
        return (
            f", but {near.name}, which has no image and may be meant: rename it to {path.name}, as Kohya takes no other"
        )
    class_ = layout.class_of(folder, image)
    return f": Kohya would train it as {class_!r}, from its folder's name" if class_ else ALONE


def _strays(files: list[Path], suffix: str) -> Mapping[Path, list[Path]]:
    """The captions without an image, by folder."""
    taken = {image.with_suffix("") for image in images_of(files)}
    found: dict[Path, list[Path]] = {}
    for file in files:
        if file.suffix.lower() == suffix and not (file.suffix == suffix and file.with_suffix("") in taken):
            found.setdefault(file.parent, []).append(file)
    return found


def _near_miss(image: Path, strays: Sequence[Path]) -> Path | None:
    """The caption whose name is nearly that of `image`: `a.txt` for the crop `a_1_2.png`, `a.png.txt`, `A.TXT`."""
    stem = _plain(image.stem)
    near = []
    for path in strays:
        name = _plain(path.stem.removesuffix(image.suffix))
        rest = stem.removeprefix(name) if name and stem.startswith(name) else "-"
        if not rest or re.fullmatch(r"[ (]+\d[\d ()x.]*", rest):
            near.append(path)
    return max(near, key=lambda path: len(path.stem), default=None)


def _plain(stem: str) -> str:
    """Without the differences in which a copied name often differs."""
    return re.sub(r"[\s_-]+", " ", stem).strip().casefold()


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
