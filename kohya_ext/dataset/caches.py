"""Cached latents next to the images: which are damaged, and which were made of another image or another size."""

from __future__ import annotations

import ast
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.dataset.buckets import Bucketing, Size
from kohya_ext.dataset.findings import ADVICE, AuditFinding
from kohya_ext.files.regular import NotReadableError, open_regular

SUFFIX = ".npz"
MOST_ARRAYS = 256
LARGEST_HEADER = 4096  # bytes of each array that are read
STRIDE = 8  # pixels a latent stands for, in all models that keep one size in a file
_FAMILIES = "sd|sdxl|sd3|flux|lumina|hi|anima"
_SIZED = re.compile(rf"(.+)_(\d{{4,}})x(\d{{4,}})_(?:{_FAMILIES})$")
_TEXT = re.compile(rf"(.+)_(?:te_outputs|(?:{_FAMILIES})_te)$")  # what the text encoders made of the caption
_ONE_SIZE = ("_sd", "_sdxl")  # the others may keep latents of several sizes
_NUMBERS = {"<i8": "q", "<i4": "i", "<f8": "d", "<f4": "f", "<u8": "Q", "<u4": "I"}


@dataclass(frozen=True)
class CachedArray:
    """One array of a cache file, by its header. values: the few numbers of a small one, else empty."""

    shape: tuple[int, ...]
    values: tuple[float, ...] = ()


def owner(path: Path) -> Path:
    """The image, without its extension, that the name of a cache file stands for."""
    match = _SIZED.match(path.stem) or _TEXT.match(path.stem)
    return path.with_name(match[1]) if match else path.with_suffix("")


def check_texts(folder: Path, files: list[Path], suffix: str) -> Iterator[AuditFinding]:
    """The caches of text encoders that are older than their captions. Kohya does not compare them."""
    present = set(files)
    for path in files:
        match = _TEXT.match(path.stem) if path.suffix == SUFFIX else None
        caption = path.with_name(match[1] + suffix) if match else None
        if caption not in present:
            continue
        try:
            older = (folder / path).stat().st_mtime < (folder / caption).stat().st_mtime
        except OSError:
            continue
        if older:
            text = f"is older than {caption.name}: if the caption was edited since, Kohya trains the old one; delete it"
            yield AuditFinding("old-text-cache", path.as_posix(), text, ADVICE)


def check(folder: Path, files: list[Path], sizes: Mapping[Path, Size], bucketing: Bucketing) -> Iterator[AuditFinding]:
    """The findings about the cache files among `files`. sizes: of the images without their extension, in pixels."""
    for path in files:
        if path.suffix != SUFFIX:
            continue
        match = _SIZED.match(path.stem)
        image = path.with_name(match[1]) if match else path.with_suffix("")
        size = sizes.get(image)
        if size is None:
            continue
        if match and (named := (int(match[2]), int(match[3]))) != size:
            yield _stale(path, f"was made of an image of {_of(named)}, which has {_of(size)} now")
            continue
        try:
            arrays = headers(folder / path)
        except NotReadableError as error:
            yield AuditFinding("damaged-cache", path.as_posix(), str(error).removeprefix(f"{folder / path} "))
            continue
        except Exception:  # of zip files and headers that are none
            text = "is not a whole cache file: Kohya stops at it; delete it"
            yield AuditFinding("damaged-cache", path.as_posix(), text)
            continue
        if why := _difference(path, arrays, size, bucketing):
            yield _stale(path, why)


def headers(path: Path) -> dict[str, CachedArray]:
    """The arrays in an .npz, of which no more than the headers are read. Raises what zipfile raises, and ValueError."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(names) > MOST_ARRAYS:
            raise ValueError("too many arrays")
        found = {}
        for name in names:
            with archive.open(name) as member:
                found[name.removesuffix(".npy")] = _array(member.read(LARGEST_HEADER))
        return found


def _array(head: bytes) -> CachedArray:
    if head[:6] != b"\x93NUMPY" or len(head) < 12:
        raise ValueError("not an array")
    start, length = (10, struct.unpack("<H", head[8:10])[0]) if head[6] == 1 else (12, *struct.unpack("<I", head[8:12]))
    described: Any = ast.literal_eval(head[start : start + length].decode("latin-1"))
    shape = tuple(int(side) for side in described["shape"])
    code = _NUMBERS.get(described["descr"], "")
    if len(shape) != 1 or not code or shape[0] > 8:
        return CachedArray(shape)
    form = f"<{shape[0]}{code}"
    return CachedArray(shape, struct.unpack_from(form, head, start + length))


def _difference(path: Path, arrays: dict[str, CachedArray], size: Size, bucketing: Bucketing) -> str:
    original, latents = arrays.get("original_size"), arrays.get("latents")
    if original and len(original.values) == 2 and (made := (int(original.values[0]), int(original.values[1]))) != size:
        return f"was made of an image of {_of(made)}, which has {_of(size)} now"
    old = _SIZED.match(path.stem) is None
    if latents is None or len(latents.shape) != 3 or not (old or path.stem.endswith(_ONE_SIZE)):
        return ""
    bucket = bucketing.place(*size).bucket
    trained = (latents.shape[2] * STRIDE, latents.shape[1] * STRIDE)
    if trained != tuple(side // STRIDE * STRIDE for side in bucket):
        return f"holds latents of {_of(trained)}, but with these settings the bucket is {_of(bucket)}"
    return ""


def _stale(path: Path, why: str) -> AuditFinding:
    return AuditFinding("stale-cache", path.as_posix(), f"{why}: Kohya may train the old latents; delete it")


def _of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
