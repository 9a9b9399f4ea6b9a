"""Reading weights without reading files: safetensors mapped into memory, checked before the first tensor is touched."""

from __future__ import annotations

import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kohya_ext.core.errors import UsageError
from kohya_ext.files.regular import open_regular
from kohya_ext.tensors.header import TensorEntry, is_pickle, read_header

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
for _name, _attribute in (("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")):
    if hasattr(torch, _attribute):
        DTYPES[_name] = getattr(torch, _attribute)
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def item_size(dtype: torch.dtype) -> int:
    """Bytes of one element; torch before 2.1 has no `dtype.itemsize`."""
    size: int = torch.empty((), dtype=dtype).element_size()
    return size


class TensorSource(Protocol):
    """A file of named tensors."""

    path: Path
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    def load(self, key: str) -> Tensor:
        """The tensor as stored; its memory may be the file's own, so it is for reading only."""


class TensorFile:
    """A safetensors file. Tensors are views of the mapped file: nothing is read before it is used.

    Raises UsageError when the file is not one, is damaged, or is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.path = path
        self._start = header.start
        self._entries = {key: _entry(path, key, entry) for key, entry in header.entries.items()}
        try:
            with open_regular(path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        self.metadata: Mapping[str, str] = header.metadata
        self.shapes: Mapping[str, tuple[int, ...]] = {key: entry[1] for key, entry in self._entries.items()}

    def load(self, key: str) -> Tensor:
        """The tensor, a view of the mapped file where it is aligned there, else a copy."""
        dtype, shape, begin, end = self._entries[key]
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        count = (end - begin) // item_size(dtype)
        if (self._start + begin) % item_size(
            dtype
        ):  # torch wants aligned views; writers of the format pad, some do not
            return torch.frombuffer(
                bytearray(self._map[self._start + begin : self._start + end]), dtype=dtype, count=count
            ).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=self._start + begin).view(shape)

    def release(self) -> None:
        """Give back the memory that what has been read takes; what is read again comes from the disk again.

        A mapped file's pages count as memory of the process until the system wants them elsewhere. Nothing may have
        been written into a tensor of this file.
        """
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


class PickledFile:
    """A .ckpt: only on the user's explicit word, and only tensors and containers are let out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        try:
            content: Any = torch.load(str(path), map_location="cpu", weights_only=True, **_mapped(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not a plain file of tensors and is not loaded ({_reason(error)})") from error
        content = content.get("state_dict", content) if isinstance(content, dict) else content
        if not isinstance(content, dict):
            raise UsageError(f"{path} contains no state dict")
        self._tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        self.shapes: Mapping[str, tuple[int, ...]] = {key: tuple(value.shape) for key, value in self._tensors.items()}

    def load(self, key: str) -> Tensor:
        """The tensor, which is in memory already."""
        return self._tensors[key]


def open_tensors(path: Path, *, allow_pickle: bool = False) -> TensorSource:
    """The file at `path`. Raises UsageError for everything that is not safe and whole."""
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, a file is needed here")
    if not is_pickle(path):
        return TensorFile(path)
    if path.suffix == ".safetensors":
        raise UsageError(f"{path} is a pickle under the name of a safetensors file and is not loaded")
    if not allow_pickle:
        raise UsageError(
            f"{path} is a pickle, which can run code when it is loaded. Convert it to .safetensors, "
            "or give --allow-pickle to load only plain tensors from it"
        )
    return PickledFile(path)


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load the file all the same."""
    text = str(error)
    if found := re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)):? ([\w.]+)", text):
        return f"it asks for {found[1]}, which is more than tensors need"
    if "central directory" in text:
        return "it is cut off or damaged: fetch it again"
    return "it is not a complete pickle of tensors" if "eights only" in text or not text else text.splitlines()[0]


def _mapped(path: Path) -> dict[str, bool]:
    """Only zip archives can be mapped, and torch before 2.1 does not know how."""
    known = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 1)
    return {"mmap": True} if known and zipfile.is_zipfile(path) else {}


def _entry(path: Path, key: str, entry: TensorEntry) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    if entry.dtype not in DTYPES:
        raise UsageError(
            f"{path}: {key} is of type {entry.dtype}, which this torch ({torch.__version__}) does not have"
        )
    return DTYPES[entry.dtype], entry.shape, entry.begin, entry.end
