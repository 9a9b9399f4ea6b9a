"""One image file, opened as Kohya opens it: what it is, and what is wrong with it."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from kohya_ext.dataset.findings import ADVICE, Finding
from kohya_ext.files.regular import NotReadableError, TooLargeError, read_regular

ORIENTATION = 0x0112  # EXIF tag
LARGEST_FILE = 512 << 20  # bytes
REDUCED = 128  # pixels; a JPEG is decoded at the smallest fraction of its size that is still this wide and high: 1:8
SUFFIXES = {
    "PNG": {".png"},
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "AVIF": {".avif"},
    "JXL": {".jxl"},
}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Picture:
    """path: relative to the folder. width, height: in pixels, 0 when unreadable. digest: SHA-256 of the file.

    fingerprint: 64 bits that are near for images that look alike; None without the library imagehash.
    """

    path: str
    width: int = 0
    height: int = 0
    digest: str = ""
    fingerprint: int | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def readable(self) -> bool:
        return self.width > 0


def look_at(folder: Path, path: Path, *, fingerprint: bool = True) -> Picture:
    """Open and decode `path`, wholly: what is cut short shows at its end. Never raises for a broken image."""
    name = path.as_posix()
    try:
        data = read_regular(folder / path, LARGEST_FILE)
    except TooLargeError:
        return _broken(name, "unreadable", f"has more than {LARGEST_FILE >> 20} MB")
    except NotReadableError as error:
        return _broken(name, "unreadable", str(error).removeprefix(f"{folder / path} "))
    if not data:
        return _broken(name, "empty-file", "is empty (0 bytes)")
    digest = hashlib.sha256(data).hexdigest()
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            findings = [*_before_decoding(name, image, data)]
            image.draft("RGB", (min(REDUCED, size[0]), min(REDUCED, size[1])))
            image.load()
            findings += _after_decoding(name, image)
            bits = _fingerprint(image) if fingerprint else None
    except UnidentifiedImageError:
        return _broken(name, "unreadable", "is not an image that Pillow knows", digest)
    except Image.DecompressionBombError:
        return _broken(name, "too-large", "has too many pixels: Pillow takes it for an attack, and Kohya stops", digest)
    except Exception as error:  # decoders raise what they like on broken input
        cut = "truncated" in str(error).lower() or "premature" in str(error).lower()
        code, text = ("truncated", "is cut short") if cut else ("unreadable", "cannot be decoded")
        return _broken(name, code, f"{text}: {error}", digest)
    return Picture(name, size[0], size[1], digest, bits, tuple(findings))


def _broken(name: str, code: str, text: str, digest: str = "") -> Picture:
    return Picture(name, digest=digest, findings=(Finding(code, name, text),))


def _before_decoding(name: str, image: Any, data: bytes) -> list[Finding]:
    findings = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's second picture is nothing to worry about
        findings.append(Finding("animated", name, f"has {frames} frames: Kohya trains the first"))
    if image.mode == "CMYK":
        findings.append(Finding("cmyk", name, "is for print (CMYK): its colours change in the conversion to RGB"))
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and data[24:25] == b"\x10"):
        findings.append(Finding("16-bit", name, "has 16 bits a channel: save it with 8, or Kohya may clip it"))
    turned = image.getexif().get(ORIENTATION, 1)
    if turned not in (0, 1):
        findings.append(
            Finding("rotated", name, f"is turned by its EXIF data (orientation {turned}), which Kohya ignores")
        )
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES.get(image.format, {suffix}):
        findings.append(Finding("wrong-extension", name, f"is {image.format}, whatever its name says", ADVICE))
    return findings


def _after_decoding(name: str, image: Any) -> list[Finding]:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return []
    alpha = image.convert("RGBA").getchannel("A").getextrema()
    if alpha[0] == 255:
        return []
    return [Finding("transparent", name, "has transparent parts: Kohya trains whatever colour lies below them")]


def _fingerprint(image: Any) -> int | None:
    try:
        import imagehash
    except ImportError:
        return None
    if image.mode.startswith(("I", "F")):  # conversion to RGB would clip these to white
        return None
    return int(str(imagehash.phash(image.convert("RGB"))), 16)


def can_fingerprint() -> bool:
    """Whether images that look alike can be found: imagehash is an extra."""
    try:
        import imagehash  # noqa: F401
    except ImportError:
        return False
    return True
