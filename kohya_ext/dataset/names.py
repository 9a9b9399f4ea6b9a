"""File names and captions: what a name says, and the name that a caption can have."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable

LONGEST_NAME = 255  # bytes, on all common file systems

# The word that systems add to the name of a copy, in the languages that they speak.
_COPY = (
    "copy|kopie|copie|copia|cópia|còpia|kopia|kopi|kopio|kopya|kópia|másolat|копия|копія|копие|копија|αντίγραφο|"
    "副本|拷贝|複製|コピー|のコピー|복사본|sao chép|bản sao"
)
# What nobody but a system adds: "(1)", " - Copy", " copy 3", " (another copy)", "~1". Years in brackets stay.
_MARK = re.compile(
    r"(?:\s*\((?!(?:1[89]|20)\d\d\))\d{1,5}\)|~\d{1,3}"
    rf"|\s+(?:[-–—]\s+)?(?:{_COPY})(?:\s\d{{1,3}})?|\s+\((?:another |\d+(?:st|nd|rd|th) )?(?:{_COPY})(?: \d+)?\))$",
    re.IGNORECASE,
)
# What may number a series, or belong to what the name says: "_2", "(1990)".
_NUMBER = re.compile(r"(?:\s*\((\d{1,5})\)|_(\d{1,5}))$")
_YEARS_FROM = 1000  # a series that has only numbers beyond this counts years
# Names that cameras, phones, messengers, browsers and image generators give; they say nothing about the image.
_CAMERA = re.compile(
    r"(?:(?:fb_)?(?:mv)?img[-_ ]?e?\d+(?:[-_](?:wa|burst|cover|hdr|pano|portrait|bokeh|edit(?:ed)?)?\d*)*"
    r"|_?(?:img|mg)_\d+(?: \d)?|vid-\d{8}-wa\d+|received_\d{6,}|snapchat-\d{6,}"
    r"|(?:download|images?|unnamed|untitled|unbenannt|index)(?:[-_ ]?\d{1,3})?|pasted[-_ ]image(?:[-_ ]\d+)?"
    r"|_?dsc[nf]?_?\d{3,}|pxl_\d{8}_\d+(?:\.\w+)*|p\d{6,8}|\d{3}[-_]\d{4}"
    r"|(?:dji|gopr|gp|vid|cimg|hpim|imgp|mvi|image|photo|pic|picture|bild|foto)[-_ ]?\d{3,}(?:[-_]\d+)*"
    r"|(?:screenshot|screen shot|bildschirmfoto|photo|signal|whatsapp image|image)[-_ ]\d{4}[-_.]?\d\d[-_.]?\d\d"
    r"(?:[-_ .:,]|\d|at|um|[ap]m)*(?:_[a-z]+)?"
    r"|(?:sam|comfyui|tmp)_\d{4,}_?|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # no caption means them, and they steer the terminal that shows it
_SPACES = re.compile(r"\s+")
_ILLEGAL = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')  # in names on Windows; on Linux only / and NUL are
_RESERVED = re.compile(r"^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)  # devices on Windows


def series_of(stems: Iterable[str]) -> frozenset[str]:
    """The names that siblings of one folder share but for a number: `a dog` for `a dog_1` and `a dog_2`.

    One number is not a series (`room_101`), nor are numbers that are all years; the bare name counts as the first.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    for stem in stems:
        text = _without_marks(_plain(stem))
        match = _NUMBER.search(text)
        if match:
            numbers[text[: match.start()].strip()].add(int(match[1] or match[2]))
        numbers[text].add(-1)
    return frozenset(base for base, found in numbers.items() if base and len(found) > 1 and min(found) < _YEARS_FROM)


def is_camera_name(stem: str) -> bool:
    """True when a camera, a phone or a program gave this name (`IMG_2023`, `DSC_0001`), or when no letter is in it."""
    text = _without_marks(_plain(stem))
    return bool(_CAMERA.fullmatch(text)) or not any(letter.isalpha() for letter in text)


def caption_of(stem: str, *, keep_suffix: bool = False, series: Container[str] = frozenset()) -> str:
    """The caption that the name of an image (without its extension) stands for.

    Normalised to NFC, without control characters, spaces run together, and without the suffixes of duplicates unless
    `keep_suffix`. A name that is nothing but such a suffix stays whole. series: what `series_of` found among the
    siblings; only there is a number at the end (`_2`) a suffix.
    """
    text = _plain(stem)
    while not keep_suffix:
        shorter = _without_marks(text)
        match = _NUMBER.search(shorter)
        if match and (base := shorter[: match.start()].strip()) in series:
            shorter = base
        if shorter == text:
            break
        text = shorter
    return text


def _plain(stem: str) -> str:
    return _SPACES.sub(" ", _CONTROL.sub(" ", unicodedata.normalize("NFC", stem))).strip()


def _without_marks(text: str) -> str:
    while (shorter := _MARK.sub("", text).strip()) not in ("", text):
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
