"""The EMA's state as a file: safetensors keyed by parameter name, the rest as JSON in its header.

Written as a stream, because the usual writers first collect a copy of every tensor in host memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from kohya_ext.files.atomic import replacing
from kohya_ext.tensors.elements import DEVICE_SLICE, slices

FILE_NAME = "kohya_ext_ema.safetensors"
_HEADER_KEY = "kohya_ext_ema"
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a `Shadow.state_dict()`. The file appears whole or not at all; raises OSError when it cannot be written."""
    settings = {key: value for key, value in state.items() if key != "shadow"}
    write_tensors(path, state["shadow"], {_HEADER_KEY: json.dumps(settings, sort_keys=True)})


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote. Raises ValueError when the file is damaged or not an EMA state."""
    try:
        with safe_open(str(path), framework="pt") as opened:
            settings = (opened.metadata() or {}).get(_HEADER_KEY)
            if settings is None:
                raise ValueError(f"{path} is not an EMA state: its header has no entry {_HEADER_KEY!r}")
            shadow = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except ValueError:
        raise
    except Exception as error:  # safetensors has its own exception class, another one in old versions
        raise ValueError(f"{path} cannot be read as an EMA state: {error}") from error
    return {**_settings(path, settings), "shadow": shadow}


def _settings(path: Path, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: the settings in its header are not JSON") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: its header holds no settings")
    return settings


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, a slice of a tensor at a time. Raises OSError."""
    with replacing(path) as file:
        _write(file, tensors, metadata)


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for tensor in tensors.values():
        flat = tensor.detach().reshape(-1)
        for start, length in slices(flat.numel(), DEVICE_SLICE):
            file.write(memoryview(flat[start : start + length].cpu().view(torch.uint8).numpy()))
