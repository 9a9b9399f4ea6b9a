"""Which files of a folder Kohya takes as training images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.files.regular import folder_fault

# Kohya reads these in every release; AVIF and JPEG XL where a plug-in of Pillow is installed.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"})
CAPTION_SUFFIX = ".txt"


def require_folder(folder: Path) -> Path:
    """The real path of `folder`. Raises UsageError when it is none or cannot be read."""
    fault = folder_fault(folder)
    if fault is not None:
        raise UsageError(f"{folder}: {fault}; give the folder that holds the training images")
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
    return folder.resolve()


def require_extension(suffix: str) -> None:
    """Raises UsageError when `suffix` is not an extension that caption files can have."""
    if not re.fullmatch(r"\.\w{1,32}", suffix) or re.search("[\ud800-\udfff]", suffix):
        raise UsageError(f"{suffix!r} is not an extension of caption files: give .txt or .caption")
    if suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"{suffix} is an extension of images, not of captions: give .txt or .caption")


def images_in(folder: Path, *, recursive: bool) -> list[Path]:
    """The images below `folder`, relative to it, sorted. Hidden folders and files are skipped."""
    return sorted(path for path in files_in(folder, recursive=recursive) if path.suffix.lower() in IMAGE_SUFFIXES)


def files_in(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """All visible files below `folder`, relative to it. Folders that are links are not entered."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        below = Path(root).relative_to(folder)
        yield from (below / name for name in names if not name.startswith("."))
