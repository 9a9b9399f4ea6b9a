"""The header of a safetensors file, checked: every byte of the file must be accounted for. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kohya_ext.errors import UsageError

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000  # the format's own
METADATA = "__metadata__"
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
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
    entries: Mapping[str, Entry]
    start: int
    size: int


def read_header(path: Path) -> Header:
    """The header of `path`. Raises UsageError when the file is not one, is damaged, or is shorter than it says."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            table, start = _table(path, file, size)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    metadata = table.pop(METADATA, None) or {}
    entries = {key: _entry(path, key, entry) for key, entry in table.items()}
    _check_extent(path, entries, size - start)
    return Header(path, {str(key): str(value) for key, value in metadata.items()}, entries, start, size)


def is_pickle(path: Path) -> bool:
    """Whether `path` holds what `torch.save` writes, whatever its name is. Raises UsageError."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    return start[:2] == b"PK" or (start[:1] == b"\x80" and path.suffix.lower() in PICKLE_SUFFIXES)


def encode(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a header, its length before it, padded so that the weights start on a multiple of eight."""
    table: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for key, entry in entries.items():
        table[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _table(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = file.read(LENGTH_BYTES)
    count = int.from_bytes(length, "little")
    if len(length) < LENGTH_BYTES or not 2 <= count <= HEADER_LIMIT:
        if length.startswith(b"version "):
            raise UsageError(f"{path} is a Git LFS pointer, not the model: fetch it with `git lfs pull`")
        if length[:1] == b"<":
            raise UsageError(f"{path} is a web page, not a model: the download asks for a login or a licence first")
        raise UsageError(f"{path} is not a safetensors file (or is damaged): no valid header")
    if count + LENGTH_BYTES > size:
        raise UsageError(f"{path} ends within its header: half a download? Fetch it again")
    try:
        table = json.loads(file.read(count))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not a safetensors file (or is damaged): its header is no JSON") from error
    if not isinstance(table, dict) or not isinstance(table.get(METADATA, {}) or {}, dict):
        raise UsageError(f"{path} is damaged: its header is no table of tensors")
    return table, LENGTH_BYTES + count


def _entry(path: Path, key: str, entry: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        plausible = all(type(n) is int and n >= 0 for n in numbers) and begin <= end
        known = dtype in SIZES
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: the header's entry of {key} is incomplete") from error
    if not known:
        raise UsageError(f"{path}: {key} is of type {dtype}, which is unknown")
    if not plausible or math.prod(shape) * SIZES[dtype] != end - begin:
        raise UsageError(f"{path} is damaged: shape and size of {key} contradict each other")
    return Entry(dtype, shape, begin, end)


def _check_extent(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    needed = max((entry.end for entry in entries.values()), default=0)
    if not entries:
        raise UsageError(f"{path} holds no tensors")
    if size < needed:
        raise UsageError(f"{path} is cut off: it holds {size} of {needed} bytes of weights. Fetch it again")
    if size > needed:
        raise UsageError(f"{path} is damaged: {size - needed} bytes follow the last tensor")
