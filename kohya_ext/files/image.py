"""Opening images of others: regular files, formats that are pixels and nothing else, and bounded memory.

An image says in its first bytes how large it is, and is believed before it is decoded: a file of some kilobytes may
unfold to gigabytes. Whoever decodes takes the memory for it from one account that all threads share.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from kohya_ext.files.regular import open_regular

# What Pillow, and so Kohya, reads under any extension; others start programs (EPS). TGA has no signature: it is last.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JXL"),
    *("JPEG2000", "PPM", "ICO", "ICNS", "PCX", "DDS", "SGI", "PSD", "QOI", "SUN", "TGA"),
)
MEMORY = 512 << 20  # bytes for all images that are decoded at a time
PER_PIXEL = 8  # bytes: as decoded, and once converted
PROGRESSIVE = 7  # bytes a pixel that a progressive JPEG takes, at whatever size it is decoded

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # what is too large is refused


class TooManyPixelsError(Exception):
    """Decoding would take more memory than there is for it. pixels: how many."""

    def __init__(self, pixels: int) -> None:
        super().__init__(f"has {pixels / 1e6:.0f} megapixels")
        self.pixels = pixels


class _Account:
    """Memory that several threads share."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


_account = _Account(MEMORY)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The image at `path`, not decoded yet. Raises NotReadableError, and what Pillow raises."""
    with open_regular(path) as file, read(file) as image:
        yield image


def read(file: BinaryIO) -> Any:
    """The image in `file`, not decoded yet. Raises TooManyPixelsError, and what Pillow raises."""
    _check_canvas(file)
    Image.init()  # all of Pillow's formats, once
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


@contextlib.contextmanager
def decoding(image: Any, *, reduced_to: int | None = None) -> Iterator[None]:
    """Room in memory to decode `image` and to convert it. Raises TooManyPixelsError when there never will be.

    reduced_to: the side in pixels that is enough, where the format can be decoded smaller than it is.
    """
    width, height = image.size
    cost = width * height * PER_PIXEL
    if reduced_to is not None and image.format in ("JPEG", "MPO"):
        image.draft("RGB", (min(reduced_to, width), min(reduced_to, height)))
        cost = image.size[0] * image.size[1] * PER_PIXEL
        if image.info.get("progressive") or image.info.get("progression"):
            cost += width * height * PROGRESSIVE
    if cost > MEMORY:
        raise TooManyPixelsError(width * height)
    with _account.taken(cost):
        image.load()
        yield


def frames(image: Any) -> int:
    """How many frames the image has, more than two counted only where the header says: some formats must be gone
    through frame by frame.
    """
    if image.format in ("PNG", "WEBP", "AVIF"):
        return int(getattr(image, "n_frames", 1))
    return 2 if getattr(image, "is_animated", False) else 1


def _check_canvas(file: BinaryIO) -> None:
    """A WebP's canvas is made when it is opened, so its size is looked up first."""
    head = file.read(30)
    file.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[start : start + 3], "little") for start in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(head[start : start + 2], "little") & 0x3FFF for start in (26, 28))
    if width * height * PER_PIXEL > MEMORY:
        raise TooManyPixelsError(width * height)
