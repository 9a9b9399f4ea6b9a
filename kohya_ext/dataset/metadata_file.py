"""The JSON of a fine-tune (meta_cap.json, meta_lat.json), whose captions and tags are trained instead of caption files.

Keys are paths, full or relative to the folder of images, with the extension or without. sd-scripts joins caption and
tags; an entry without both is an empty caption, at which the oldest releases stop.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kohya_ext.core.errors import UsageError
from kohya_ext.dataset.findings import AuditFinding
from kohya_ext.files.regular import open_regular

NAMES = ("meta_lat.json", "meta_cap.json")  # as the Finetuning tab calls them, what is trained first
SEPARATOR = ", "
LARGEST = 256 << 20  # bytes; a million images have about that
LINES = ".jsonl"  # newer releases take one object a line as well


@dataclass(frozen=True)
class MetadataFile:
    """What a metadata file says of the images of a folder. captions: by image; lost: keys that fit no image."""

    path: Path
    captions: Mapping[Path, str]
    lost: tuple[str, ...] = ()

    def check(self, images: Iterable[Path]) -> Iterator[AuditFinding]:
        """Images and entries that do not belong together."""
        for image in images:
            if image not in self.captions:
                text = f"is not in {self.path.name}: a fine-tune with that file does not train it"
                yield AuditFinding("not-listed", image.as_posix(), text)
        for key in self.lost:
            text = f"has an entry {key!r}, for which there is no image here: Kohya stops at it"
            yield AuditFinding("no-image", self.path.name, text)


def find(folder: Path) -> Path | None:
    """The metadata file in `folder`, None without one."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read(path: Path, folder: Path, images: Iterable[Path]) -> MetadataFile:
    """The captions of `images` (relative to `folder`). Raises UsageError where Kohya could not read the file."""
    known = {image.as_posix(): image for image in images}
    known |= {image.with_suffix("").as_posix(): image for image in known.values()}
    captions: dict[Path, str] = {}
    lost = []
    for key, entry in _entries(path).items():
        image = _image(key, folder, known)
        if image is None:
            if not _cached(key, folder):
                lost.append(key)
        else:
            captions[image] = _caption(path, key, entry)
    return MetadataFile(path, captions, tuple(lost))


def _entries(path: Path) -> Mapping[str, Any]:
    try:
        with open_regular(path) as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise UsageError(f"{path} has more than {LARGEST >> 20} MB: is it the metadata of a fine-tune?")
    try:
        text = data.decode("utf-8")
        found = _lines(text) if path.suffix == LINES else json.loads(text)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}): Kohya stops at it; save it as UTF-8") from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        why = "begins with a byte order mark" if data.startswith(b"\xef\xbb\xbf") else "is not valid JSON"
        raise UsageError(f"{path} {why}, at which Kohya stops ({str(error)[:100]})") from error
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UsageError(
            f"{path} is not the metadata of a fine-tune: it must map the name of each image to its caption, as in "
            '{"image1": {"caption": "a dog"}}'
        )
    return found


def _lines(text: str) -> dict[str, Any]:
    entries = [json.loads(line) for line in text.splitlines()]
    return {str(entry["image_path"]): entry for entry in entries}


def _image(key: str, folder: Path, known: Mapping[str, Path]) -> Path | None:
    name = PurePosixPath(key.replace("\\", "/"))
    if name.is_absolute():
        if not name.is_relative_to(folder.as_posix()):
            return None
        name = name.relative_to(folder.as_posix())
    return known.get(name.as_posix())


def _cached(key: str, folder: Path) -> bool:
    """Whether only the latents are there, which is enough for most releases."""
    try:
        path = folder / key
        return path.with_suffix(".npz").exists() or Path(f"{path}.npz").exists()
    except (OSError, ValueError):
        return False


def _caption(path: Path, key: str, entry: Mapping[str, Any]) -> str:
    parts = [entry.get(name) for name in ("caption", "tags")]
    if wrong := next((part for part in parts if part is not None and not isinstance(part, str)), None):
        raise UsageError(f"{path}: caption or tags of {key!r} are a {type(wrong).__name__} and not a text")
    return SEPARATOR.join(part for part in parts if part)
