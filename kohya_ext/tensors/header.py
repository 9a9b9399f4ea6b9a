"""The header of a safetensors file, checked as strictly as the library safetensors does. Needs no torch.

Every byte of the file belongs to exactly one tensor. Beyond the library, keys must not come twice and numbers must be
such as a tensor can have: whoever reads a file otherwise than we do must not see another model in it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from kohya_ext.core.errors import UsageError
from kohya_ext.files.regular import open_regular

LENGTH_BYTES = 8
FORMAT_LIMIT = 100_000_000  # bytes of a header
HEADER_LIMIT = 32 << 20  # what we read of one; the largest that we know of has 4 MB
MOST_VALUES = 1_500_000  # keys, lists and objects in a header: what 32 MB of them take in memory is no longer small
MOST_DIMENSIONS = 64
LONGEST = 1 << 48  # numbers in a row of a tensor
MOST_DIGITS = 20  # of a number below 2**64
METADATA = "__metadata__"
_SURROGATE = re.compile("[\ud800-\udfff]")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
SIZES = {name: bits // 8 for name, bits in BITS.items() if bits % 8 == 0}  # in bytes


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: the format's name of its type, and its bytes [begin, end) counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself. start: where the weights begin, in bytes; size: of the whole file."""

    path: Path
    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    start: int
    size: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Args:
        path: of a regular file; its header has 32 MB at most.

    Returns:
        Its metadata and tensors; none of the weights are read.

    Raises:
        UsageError: the file is not one, is damaged, or is shorter than it says.

    Reference:
        https://github.com/huggingface/safetensors#format
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            table, start = _table(path, file, size)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    metadata = table.pop(METADATA, None) or {}
    entries = {key: _entry(path, key, entry) for key, entry in table.items()}
    _check_places(path, entries, size - start)
    return Header(path, metadata, entries, start, size)


def is_pickle(path: Path) -> bool:
    """Whether `path` holds what `torch.save` writes, whatever its name is. Raises UsageError."""
    try:
        with open_regular(path) as file:
            start = file.read(4)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    return start[:2] == b"PK" or (start[:1] == b"\x80" and path.suffix.lower() in PICKLE_SUFFIXES)


def encode(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a header, its length before it, padded so that the weights start on a multiple of eight."""
    table: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for key, entry in entries.items():
        table[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


class _HeaderError(ValueError):
    """What is wrong with the JSON of a header, beyond its form."""


def _table(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    data = _header_bytes(path, file, size)
    try:
        table = json.loads(
            data.decode("utf-8"), parse_int=_whole, parse_constant=_no_constant, object_pairs_hook=_distinct
        )
    except _HeaderError as error:
        raise UsageError(f"{path} is damaged: in its header, {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a safetensors file (or is damaged): its header is not JSON") from error
    if not isinstance(table, dict):
        raise UsageError(f"{path} is damaged: its header is not a table of tensors")
    metadata = table.get(METADATA)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UsageError(f"{path} is damaged: its metadata is not a table of texts, and the format allows nothing else")
    if any(_SURROGATE.search(text) for text in (*table, *metadata, *metadata.values())):
        raise UsageError(f"{path} is damaged: a text in its header is not Unicode")
    return table, LENGTH_BYTES + len(data)


def _header_bytes(path: Path, file: BinaryIO, size: int) -> bytes:
    length = file.read(LENGTH_BYTES)
    count = int.from_bytes(length, "little")
    if len(length) < LENGTH_BYTES or not 2 <= count <= FORMAT_LIMIT:
        if length.startswith(b"version "):
            raise UsageError(f"{path} is a Git LFS pointer, not the model: fetch it with `git lfs pull`")
        if length[:1] == b"<":
            raise UsageError(f"{path} is a web page, not a model: the download asks for a login or a licence first")
        raise UsageError(f"{path} is not a safetensors file (or is damaged): no valid header")
    if count + LENGTH_BYTES > size:
        raise UsageError(f"{path} ends within its header: an incomplete download? Download it again")
    if count > HEADER_LIMIT:
        raise UsageError(
            f"{path} has a header of {count >> 20} MB, more than the {HEADER_LIMIT >> 20} MB that are read"
        )
    data = file.read(count)
    if sum(data.count(mark) for mark in (b"[", b"{", b'":')) - data.count(b'\\":') > MOST_VALUES:
        raise UsageError(f"{path} is not a model: its header has more entries than any model has tensors")
    return data


def _whole(digits: str) -> int:
    if digits.startswith("-") or len(digits) > MOST_DIGITS:
        raise _HeaderError(f"{digits[:MOST_DIGITS]} is not a size")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise _HeaderError(f"{name} is not a size")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _HeaderError(f"{key} comes twice")
    return found


def _entry(path: Path, key: str, entry: Any) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        plausible = isinstance(entry["shape"], list) and isinstance(entry["data_offsets"], list)
        plausible = plausible and all(type(n) is int for n in numbers) and begin <= end < 1 << 63
        known = isinstance(dtype, str) and dtype in BITS
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: the header's entry of {key} is incomplete") from error
    if not known:
        raise UsageError(f"{path}: {key} is of type {dtype}, which is unknown")
    if not plausible or len(shape) > MOST_DIMENSIONS or any(length > LONGEST for length in shape):
        raise UsageError(f"{path} is damaged: {key} has an impossible shape or offset")
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise UsageError(f"{path} is damaged: shape and size of {key} contradict each other")
    return TensorEntry(dtype, shape, begin, end)


def _check_places(path: Path, entries: Mapping[str, TensorEntry], size: int) -> None:
    """Every byte belongs to exactly one tensor."""
    if not entries:
        raise UsageError(f"{path} contains no tensors")
    needed = max(entry.end for entry in entries.values())
    if size < needed:
        raise UsageError(f"{path} is cut off: it holds {size} of {needed} bytes of weights. Download it again")
    if size > needed:
        raise UsageError(f"{path} is damaged: {size - needed} bytes follow the last tensor")
    last, place = "", 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < place:
            raise UsageError(f"{path} is damaged: {last} and {key} overlap")
        if entry.begin > place:
            raise UsageError(f"{path} is damaged: {entry.begin - place} bytes before {key} belong to no tensor")
        last, place = key, entry.end
