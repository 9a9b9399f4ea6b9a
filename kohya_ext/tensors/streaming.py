"""Writing safetensors files tensor by tensor: the usual writers first collect a copy of every tensor in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.files.atomic import replacing
from kohya_ext.tensors.elements import DEVICE_SLICE, slices
from kohya_ext.tensors.header import TensorEntry, encode
from kohya_ext.tensors.tensorfile import DTYPE_NAMES, item_size


def entries_of(forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, TensorEntry]:
    """The places of tensors of these types and shapes in a file that holds them one after the other."""
    entries: dict[str, TensorEntry] = {}
    end = 0
    for name, (dtype, shape) in forms.items():
        begin, end = end, end + torch.Size(shape).numel() * item_size(dtype)
        entries[name] = TensorEntry(DTYPE_NAMES[dtype], tuple(shape), begin, end)
    return entries


def write_tensors(
    path: Path,
    forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str],
    *,
    mode: int | None = None,
) -> None:
    """Write a safetensors file, whole or not at all, a slice of a tensor at a time.

    Args:
        path: of the file.
        forms: name -> type and shape of each tensor.
        tensors: the tensors, in the order of `forms`; each is asked for when the one before it is written.
        metadata: of the file.
        mode: permission bits; None keeps those of the file that is there.

    Raises:
        OSError: it cannot be written.
        ValueError: a tensor is not what `forms` says.
    """
    with replacing(path, mode=mode) as file:
        file.write(encode(entries_of(forms), metadata))
        for (name, form), tensor in zip(forms.items(), tensors, strict=True):
            if (tensor.dtype, tuple(tensor.shape)) != (form[0], tuple(form[1])):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {form[0]} {tuple(form[1])}")
            flat = tensor.detach().reshape(-1)
            for start, length in slices(flat.numel(), DEVICE_SLICE):
                file.write(memoryview(flat[start : start + length].cpu().view(torch.uint8).numpy()))
