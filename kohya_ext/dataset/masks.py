"""Masks for the masked loss: one for each image, of its size, white (in red) where is to be learnt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kohya_ext.dataset import layout
from kohya_ext.dataset.buckets import Size
from kohya_ext.dataset.findings import AuditFinding
from kohya_ext.dataset.layout import IMAGE_SUFFIXES
from kohya_ext.files import image as image_files

HALF = 128


def check(folder: Path, files: list[Path], images: Mapping[Path, Size]) -> Iterator[AuditFinding]:
    """The findings about the masks in folders called `masks` and the like, each against its images.

    images: sizes in pixels, by path relative to the folder.
    """
    by_folder: dict[Path, dict[str, Path]] = {}
    for path in files:
        if not layout.is_mask(path) or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        read = by_folder.setdefault(path.parent, {})
        if (why := layout.unread(path)) and not layout.WINDOWS:  # there no case of letters is looked at
            yield AuditFinding("not-read", path.as_posix(), why)
        else:
            read.setdefault(path.stem, path)
    for parent, masks in sorted(by_folder.items()):
        around = {path.stem: path for path in _images_for(parent, images)}
        for stem, path in sorted(around.items()):
            if stem not in masks:
                text = f"has no mask in {parent.as_posix()}: Kohya stops at a missing mask"
                yield AuditFinding("no-mask", path.as_posix(), text)
        for stem, mask in sorted(masks.items()):
            if around and stem not in around:
                yield AuditFinding("mask-without-image", mask.as_posix(), "has no image: Kohya stops at it")
            else:
                yield from _one(folder, mask, images.get(around.get(stem, mask)))


def _images_for(parent: Path, images: Iterable[Path]) -> list[Path]:
    """The images that the masks in `parent` belong to: of the folder without `masks` in its path, or all below that."""
    base = Path(*(part for part in parent.parts if part.lower() not in layout.MASK_FOLDERS))
    all_below = [path for path in images if base in path.parents]
    return [path for path in all_below if path.parent == base] or all_below


def _one(folder: Path, path: Path, size: Size | None) -> Iterator[AuditFinding]:
    name = path.as_posix()
    try:
        with image_files.opened(folder / path) as image:
            found = image.size
            with image_files.decoding(image):
                red = image.convert("RGB").getchannel("R")
    except Exception as error:  # decoders raise what they like on broken input
        yield AuditFinding("unreadable", name, f"cannot be read as a mask: {error}")
        return
    if size is not None and found != size:
        text = f"is {found[0]}x{found[1]}, its image {size[0]}x{size[1]}: Kohya stops at a mask of another size"
        yield AuditFinding("mask-size", name, text)
    if red.getextrema()[1] == 0:
        yield AuditFinding(
            "mask-black", name, "has nothing in its red channel, which alone counts: nothing of its image is trained"
        )
    elif _is_inverted(red):
        text = "is white at its borders and black in its middle: Kohya trains what is white; invert it if that is wrong"
        yield AuditFinding("mask-inverted", name, text)


def _is_inverted(red: Any) -> bool:
    """True when all four borders are white and the middle is black."""
    small = red.resize((9, 9))
    pixels = list(small.tobytes())
    border = [value for place, value in enumerate(pixels) if place // 9 in (0, 8) or place % 9 in (0, 8)]
    middle = [pixels[row * 9 + column] for row in (3, 4, 5) for column in (3, 4, 5)]
    return bool(sum(border) >= HALF * len(border) and sum(middle) < HALF * len(middle))
