"""File names and captions: what a name says, and the name that a caption can have."""

from __future__ import annotations

import re
import unicodedata

LONGEST_NAME = 255  # bytes, on all common file systems

# What systems and sites add to the names of duplicates: "(1)", "_2", " - Copy", " copy 3". At most three digits, so
# that years and the like stay.
_DUPLICATE = re.compile(r"(?:\s*\(\d{1,3}\)|_\d{1,3}|\s+-\s+copy|\s+copy(?:\s\d{1,3})?)$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # no caption means them, and they steer the terminal that shows it
_SPACES = re.compile(r"\s+")
_ILLEGAL = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')  # in names on Windows; on Linux only / and NUL are
_RESERVED = re.compile(r"^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)  # devices on Windows


def caption_of(stem: str, *, keep_suffix: bool = False) -> str:
    """The caption that the name of an image (without its extension) stands for.

    Normalised to NFC, without control characters, spaces run together, and without the suffixes of duplicates unless
    `keep_suffix`. A name that is nothing but such a suffix stays whole.
    """
    text = _SPACES.sub(" ", _CONTROL.sub(" ", unicodedata.normalize("NFC", stem))).strip()
    while not keep_suffix:
        shorter = _DUPLICATE.sub("", text).strip()
        if shorter in ("", text):
            break
        text = shorter
    return text


def name_of(caption: str, *, room: int = 0) -> str:
    """The file name (without extension) that says `caption`, as far as a file system lets it.

    room: bytes to leave free for a number and the extension. Characters that are illegal on Windows become spaces; a
    caption that is too long is cut at a word. Empty when nothing is left.
    """
    text = _SPACES.sub(" ", _ILLEGAL.sub(" ", unicodedata.normalize("NFC", caption))).strip(" .")
    if _RESERVED.match(text):
        text = f"_{text}"
    limit = LONGEST_NAME - room
    if len(text.encode()) > limit:
        cut = text.encode()[: limit + 1].decode(errors="ignore")
        text = (cut.rpartition(" ")[0] or cut.encode()[:limit].decode(errors="ignore")).strip(" .")
    return text
