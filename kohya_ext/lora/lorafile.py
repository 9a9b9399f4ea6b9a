"""Writing a LoRA module by module, so that none but the current one is in memory, and whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kohya_ext.files.atomic import NEW_FILE_MODE, replacing
from kohya_ext.lora.tensorfile import DTYPE_NAMES

MODEL_HASH = "sshs_model_hash"
LEGACY_HASH = "sshs_legacy_hash"
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000  # what old web UIs hash of a file
_DIGEST, _SHORT = 64, 8


Progress = Callable[[int, int, str], None]
"""Called with modules done, modules in all, and the name of the last one."""


@dataclass(frozen=True)
class LoraEntry:
    """A tensor to come: its key, type and shape, and how to get it."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        count = int(torch.empty((), dtype=self.dtype).element_size())
        for length in self.shape:
            count *= length
        return count


def write(
    path: Path, entries: Sequence[LoraEntry], tensors: Iterator[Tensor], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Write `entries`, whose tensors come in the same order, as a safetensors file; returns the metadata with hashes.

    Raises ConflictError when the disk does not take it; nothing is left behind then.
    """
    full = {**metadata, MODEL_HASH: "0" * _DIGEST, LEGACY_HASH: "0" * _SHORT}
    header = _header(entries, full)
    digest = hashlib.sha256()
    with replacing(path, mode=NEW_FILE_MODE) as file:
        file.write(header)
        for entry, tensor in zip(entries, tensors, strict=True):
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise ValueError(f"{entry.key}: announced as {entry.shape}, came as {tuple(tensor.shape)}")
            data = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            digest.update(data)
            file.write(data)
        full[MODEL_HASH] = digest.hexdigest()
        file.seek(_LEGACY_START)
        full[LEGACY_HASH] = hashlib.sha256(file.read(_LEGACY_LENGTH)).hexdigest()[:_SHORT]
        file.seek(0)
        file.write(_header(entries, full))
    return full


def header_room(names: Sequence[str]) -> int:
    """What the header of a LoRA of these modules takes at most: keys, shapes, places and the error of each."""
    return 2500 + sum(4 * len(name) + 290 for name in names)


def _header(entries: Sequence[LoraEntry], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.size
        table[entry.key] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
