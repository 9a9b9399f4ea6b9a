"""Safetensors files written byte by byte, so that nothing but the standard library is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kohya_ext.tensors.header import SIZES, TensorEntry, encode


def write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None, dtype: str = "F16"
) -> dict[str, bytes]:
    """A file whose tensors are filled with distinct bytes; returns them."""
    entries, end, content = {}, 0, {}
    for number, (key, shape) in enumerate(shapes.items()):
        size = SIZES[dtype]
        for length in shape:
            size *= length
        entries[key] = TensorEntry(dtype, shape, end, end + size)
        end += size
        content[key] = bytes((number * 31 + place) % 251 for place in range(size))
    path.write_bytes(encode(entries, metadata or {}) + b"".join(content.values()))
    return content
