"""Image files, opened as Kohya opens them: their properties, their problems, and which are the same or look it."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from kohya_ext.dataset.findings import ADVICE, AuditFinding
from kohya_ext.files import image as image_files
from kohya_ext.files.image import TooManyPixelsError
from kohya_ext.files.regular import NotReadableError, open_regular

ORIENTATION = 0x0112  # EXIF tag
LARGEST_FILE = 512 << 20  # bytes
HEAD = 64  # bytes, that say what an image is
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
BITS = 64  # of a fingerprint
NEAR = 6  # bits of 64 in which fingerprints of images that look alike differ at most: resized, recompressed, brighter


@dataclass(frozen=True)
class ImageFile:
    """path: relative to the folder. width, height: in pixels, 0 when unreadable. digest: SHA-256 of the file.

    fingerprint: 64 bits that are near for images that look alike; None without the library imagehash.
    """

    path: str
    width: int = 0
    height: int = 0
    digest: str = ""
    fingerprint: int | None = None
    findings: tuple[AuditFinding, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether the file could be decoded."""
        return self.width > 0


def look_at(folder: Path, path: Path, *, fingerprint: bool = True) -> ImageFile:
    """Open and decode `path`, wholly: what is cut short shows at its end. Never raises for a broken image."""
    name = path.as_posix()
    try:
        with open_regular(folder / path) as file:
            return _look_at(name, file, fingerprint)
    except NotReadableError as error:
        return _broken(name, "unreadable", str(error).removeprefix(f"{folder / path} "))
    except OSError as error:
        return _broken(name, "unreadable", f"cannot be read: {error.strerror or error}")


def _look_at(name: str, file: BinaryIO, fingerprint: bool) -> ImageFile:
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST_FILE:
        return _broken(name, "unreadable", f"has more than {LARGEST_FILE >> 20} MB")
    if not size:
        return _broken(name, "empty-file", "is empty (0 bytes)")
    head, digest = _digest(file)
    try:
        with image_files.read(file) as image:
            width, height = image.size
            findings = _before_decoding(name, image, head)
            bits = None
            try:
                with image_files.decoding(image, reduced_to=REDUCED):
                    findings += _after_decoding(name, image)
                    bits = _fingerprint(image) if fingerprint else None
            except TooManyPixelsError as error:
                findings.append(AuditFinding("not-decoded", name, f"{error}: too many to look for damage here", ADVICE))
    except UnidentifiedImageError:
        return _broken(name, "unreadable", "is not an image that Pillow knows", digest)
    except (Image.DecompressionBombError, TooManyPixelsError):
        return _broken(
            name, "too-large", "has too many pixels: Pillow rejects it as a decompression bomb, and Kohya stops", digest
        )
    except Exception as error:  # decoders raise what they like on broken input
        cut = "truncated" in str(error).lower() or "premature" in str(error).lower()
        code, text = ("truncated", "is cut short") if cut else ("unreadable", "cannot be decoded")
        return _broken(name, code, f"{text}: {error}", digest)
    return ImageFile(name, width, height, digest, bits, tuple(findings))


def _digest(file: BinaryIO) -> tuple[bytes, str]:
    """The first bytes of a file, and its SHA-256; it is read a piece at a time."""
    head = file.read(HEAD)
    digest = hashlib.sha256(head)
    while piece := file.read(1 << 20):
        digest.update(piece)
    file.seek(0)
    return head, digest.hexdigest()


def _broken(name: str, code: str, text: str, digest: str = "") -> ImageFile:
    return ImageFile(name, digest=digest, findings=(AuditFinding(code, name, text),))


def _before_decoding(name: str, image: Any, data: bytes) -> list[AuditFinding]:
    findings = []
    frames = image_files.frames(image)
    if frames > 1 and image.format != "MPO":  # a phone's second image is nothing to worry about
        count = "several" if frames == 2 else str(frames)
        findings.append(AuditFinding("animated", name, f"has {count} frames: Kohya trains the first"))
    if image.mode == "CMYK":
        findings.append(AuditFinding("cmyk", name, "is for print (CMYK): its colours change in the conversion to RGB"))
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and data[24:25] == b"\x10"):
        findings.append(AuditFinding("16-bit", name, "has 16 bits a channel: save it with 8, or Kohya may clip it"))
    turned = image.getexif().get(ORIENTATION, 1)
    if turned in range(2, 9):  # other values mean nothing, and no viewer turns the image
        findings.append(
            AuditFinding("rotated", name, f"is rotated by its EXIF data (orientation {turned}), which Kohya ignores")
        )
    profile = _profile(image.info.get("icc_profile"))
    if profile and image.mode != "CMYK":
        text = f"has the colour profile {profile}, which Kohya ignores: convert it to sRGB, or its colours shift"
        findings.append(AuditFinding("colour-profile", name, text, ADVICE))
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES.get(image.format, {suffix}):
        findings.append(AuditFinding("wrong-extension", name, f"is {image.format}, whatever its name says", ADVICE))
    return findings


def _profile(data: object) -> str:
    """The name of an ICC profile that is not sRGB, "" for sRGB and for none."""
    if not isinstance(data, bytes) or not data or b"sRGB" in data or "sRGB".encode("utf-16-be") in data:
        return ""
    for place in range(132, min(len(data), 132 + 12 * 64), 12):  # the table of tags: signature, offset, size
        if data[place : place + 4] == b"desc":
            start = int.from_bytes(data[place + 4 : place + 8], "big")
            tag = data[start : start + 400]
            if tag[:4] == b"mluc":
                length, offset = (int.from_bytes(tag[at : at + 4], "big") for at in (20, 24))
                text = tag[offset : offset + min(length, 120)].decode("utf-16-be", "replace")
            else:
                text = tag[12 : 12 + min(int.from_bytes(tag[8:12], "big"), 60)].decode("latin-1")
            return "".join(letter for letter in text if letter.isprintable()).strip() or "that is not sRGB"
    return "that is not sRGB"


def _after_decoding(name: str, image: Any) -> list[AuditFinding]:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return []
    whole = image if "A" in image.getbands() else image.convert("RGBA")
    alpha = whole.getchannel("A").getextrema()
    if alpha[0] == 255:
        return []
    where = "has transparent parts" if alpha[1] else "is transparent everywhere"
    text = f"{where}: Kohya trains whatever colour lies below; with --alpha_mask it trains "
    text += "only what is opaque" if alpha[1] else "nothing of it"
    return [AuditFinding("transparent", name, text)]


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


def duplicates(images: Sequence[ImageFile]) -> Iterator[AuditFinding]:
    """Every later copy of a file, and every later image that looks like an earlier one."""
    copies: dict[str, ImageFile] = {}
    distinct = []
    for image in images:
        first = copies.setdefault(image.digest, image) if image.digest else image
        if first is image:
            distinct.append(image)
        else:
            yield AuditFinding("duplicate", image.path, f"is the same file as {first.path}", other=first.path)
    for first, other, bits in _near(distinct):
        yield AuditFinding(
            "near-duplicate", other.path, f"looks like {first.path} ({bits} of {BITS} bits differ)", ADVICE, first.path
        )


def _near(images: Iterable[ImageFile]) -> Iterator[tuple[ImageFile, ImageFile, int]]:
    """Pairs that differ in at most NEAR bits. Two such agree in at least one of NEAR + 1 bands, so few are compared."""
    bands = [(BITS * band // (NEAR + 1), BITS * (band + 1) // (NEAR + 1)) for band in range(NEAR + 1)]
    seen: list[dict[int, list[ImageFile]]] = [defaultdict(list) for _ in bands]
    for image in images:
        fingerprint = image.fingerprint
        if fingerprint is None:
            continue
        keys = [(fingerprint >> low) & ((1 << (high - low)) - 1) for low, high in bands]
        candidates = {id(one): one for table, key in zip(seen, keys, strict=True) for one in table[key]}
        best = min(
            (
                (bin(fingerprint ^ (one.fingerprint or 0)).count("1"), place)
                for place, one in enumerate(candidates.values())
            ),
            default=(BITS, 0),
        )
        if best[0] <= NEAR:
            yield list(candidates.values())[best[1]], image, best[0]
        for table, key in zip(seen, keys, strict=True):
            table[key].append(image)
