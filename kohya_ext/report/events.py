"""The numbers in TensorBoard's event files, read without TensorBoard.

A file is a row of records: the length as 8 bytes, 4 bytes of a checksum, the data, 4 more of a checksum. The data are
Google's protocol buffers: `Event` (step 2, summary 5), `Summary` (value 1), `Value` (tag 1, simple_value 2).
"""

from __future__ import annotations

import contextlib
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

Series = dict[str, list[tuple[int, float]]]

MOST_BYTES = 1 << 28  # of a file that is read
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def scalars(folder: Path) -> Series:
    """Tag -> (step, value) in the order of the steps, from all event files below `folder`; broken records end a file.

    Of several values for a step the last written counts, as where a run was resumed.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            for tag, step, value in _values(path.read_bytes()):
                found[tag][step] = value
    return {tag: sorted(points.items()) for tag, points in found.items()}


def _values(data: bytes) -> Iterator[tuple[str, int, float]]:
    with contextlib.suppress(ValueError, IndexError, struct.error):
        for record in _records(data):
            step, summaries = 0, []
            for number, _, content in _fields(record):
                if number == 2 and isinstance(content, int):
                    step = content
                elif number == 5 and isinstance(content, bytes):
                    summaries.append(content)
            for summary in summaries:
                for number, _, content in _fields(summary):
                    if number == 1 and isinstance(content, bytes):
                        yield from _value(content, step)


def _value(data: bytes, step: int) -> Iterator[tuple[str, int, float]]:
    tag, value = "", None
    for number, kind, content in _fields(data):
        if number == 1 and isinstance(content, bytes):
            tag = content.decode("utf-8", "replace")
        elif number == 2 and kind == _FIXED32 and isinstance(content, bytes):
            value = struct.unpack("<f", content)[0]
    if tag and value is not None:
        yield tag, step, value


def _records(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        begin = place + 12
        if begin + length + 4 > len(data):
            return
        yield data[begin : begin + length]
        place = begin + length + 4


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, kind, content) of each field of a message. Raises ValueError, IndexError."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            content, place = _varint(data, place)
            yield number, kind, content
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("an unknown kind of field")
        if place + length > len(data):
            raise ValueError("a field beyond the end")
        yield number, kind, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number that is too long")
