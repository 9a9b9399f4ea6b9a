"""Model files read as shapes: tensors without contents in the place of safetensors' own readers and writers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from kohya_ext.tensors.header import Header, read_header
from kohya_ext.tracing.milestones import MODELS, Reached

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": getattr(torch, "float8_e4m3fn", torch.uint8), "F8_E5M2": getattr(torch, "float8_e5m2", torch.uint8),
}  # fmt: skip


def _header(path: Any, unknown: frozenset[str]) -> Header:
    name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - compared as text with what the parent wrote
    if name in unknown:
        raise Reached(MODELS, f"{Path(name).name} is not available, and its shapes are not known without it")
    return read_header(Path(name))


def _tensor(header: Header, key: str, device: Any = None) -> torch.Tensor:
    entry = header.entries[key]
    return torch.empty(entry.shape, dtype=DTYPES.get(entry.dtype, torch.float32), device=device or "cpu")


class _Opened:
    """As safetensors' `safe_open`."""

    def __init__(self, header: Header, device: Any) -> None:
        self._header, self._device = header, device

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def keys(self) -> list[str]:
        return list(self._header.entries)

    def offset_keys(self) -> list[str]:
        return list(self._header.entries)

    def metadata(self) -> Mapping[str, str]:
        return self._header.metadata

    def get_tensor(self, key: str) -> torch.Tensor:
        return _tensor(self._header, key, self._device)

    def get_slice(self, key: str) -> torch.Tensor:
        return _tensor(self._header, key, self._device)


def replace_readers(unknown: frozenset[str]) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Object, name and replacement of each function that reads or writes model files.

    Args:
        unknown: paths of models that are not available and whose shapes nobody knows; reading one ends the preflight.
    """
    import safetensors
    import safetensors.torch

    def load_file(filename: Any, device: Any = "cpu", **_: Any) -> dict[str, torch.Tensor]:
        header = _header(filename, unknown)
        return {key: _tensor(header, key, device) for key in header.entries}

    def safe_open(filename: Any, framework: str = "pt", device: Any = "cpu", **_: Any) -> _Opened:
        return _Opened(_header(filename, unknown), device)

    def load(data: bytes) -> dict[str, torch.Tensor]:
        raise Reached(MODELS, "the model is read as bytes (--disable_mmap_load_safetensors), which is not traced")

    def save_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        Path(filename).touch()

    def write_pickle(value: Any, file: Any, *_: Any, **__: Any) -> None:
        if isinstance(file, (str, os.PathLike)):
            Path(file).touch()

    def read_pickle(file: Any, *_: Any, **__: Any) -> Any:
        raise Reached(MODELS, f"{Path(os.fsdecode(getattr(file, 'name', file))).name} is a pickle, which is not traced")

    yield safetensors.torch, "load_file", load_file
    yield safetensors.torch, "load", load
    yield safetensors.torch, "save_file", save_file
    yield safetensors.torch, "safe_open", safe_open
    yield safetensors, "safe_open", safe_open
    yield torch, "load", read_pickle
    yield torch, "save", write_pickle
