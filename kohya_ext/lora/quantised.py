"""Weights that are stored quantised, brought back to numbers or refused: a raw integer or fp8 code is not a weight.

Known are fp8 with a scale (`scale_weight`, `weight_scale`, DeepSeek's blocks in `weight_scale_inv`), int8 with a scale
for each row (also bitsandbytes' SCB) and bitsandbytes' 4 bits (NF4, FP4). fp8 without a scale is a plain cast.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.tensors.tensorfile import TensorSource

WEIGHT = ".weight"
_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv", "weight.scale_weight", "SCB")
_ACTIVATIONS = ("scale_input", "input_scale", "comfy_quant", "weight_format")
_BNB_STATE = "quant_state.bitsandbytes__"
_BNB = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"{_BNB_STATE}nf4", f"{_BNB_STATE}fp4")
_FOREIGN = {
    ".qweight": "GPTQ, AWQ or SVDQuant", ".weight._data": "quanto", ".weight_scale_2": "NVFP4", ".wscales": "SVDQuant",
    ".weight_packed": "compressed-tensors", "._weight_qdata": "torchao",
}  # fmt: skip
_MARKERS = ("scaled_fp8",)
_BLOCK = 128  # of weight_scale_inv, in both directions
_INT8 = 127
_SLACK = 1.07  # many divide and scale in bfloat16: two more roundings, each by 2^-9, next to the half step of 2^-4
# half a step relative to the value, and half of the smallest step
_HALF_STEPS = {"float8_e4m3fn": (2.0**-4, 2.0**-10), "float8_e5m2": (2.0**-3, 2.0**-17)}


@dataclass(frozen=True)
class _How:
    """How one weight is stored. companions: by what they are for."""

    kind: str
    shape: tuple[int, ...]
    companions: Mapping[str, str]


class Dequantised:
    """A file whose quantised weights are read as float32, and whose scales are not listed as tensors.

    kinds: how many weights are stored in which way. Raises UnsupportedError for quantisations that are not known.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self.path = source.path
        self.metadata = source.metadata
        _refuse_foreign(source)
        self._how = {key: how for key in source.shapes if (how := _how(key, source))}
        hidden = {name for how in self._how.values() for name in how.companions.values()}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            key: self._how[key].shape if key in self._how else shape
            for key, shape in source.shapes.items()
            if key not in hidden and not _is_note(key)
        }
        self.kinds = Counter(how.kind for how in self._how.values())

    def load(self, key: str) -> Tensor:
        """The tensor as stored, or as float32 where it is quantised. Raises UsageError for damaged quantisations."""
        stored = self._source.load(key)
        how = self._how.get(key)
        if how is None:
            return stored
        parts = {name: self._source.load(other) for name, other in how.companions.items()}
        try:
            if how.kind.startswith("bitsandbytes"):
                return _four_bits(stored, parts, how.shape)
            return stored.float() * self._scale(parts, stored)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UsageError(f"{self.path} is damaged: {key} and its scales do not fit together") from error

    def rounded_to(self, key: str, other: Tensor) -> bool:
        """Whether `other`, stored as `key` is, would have given the same: no more than rounding tells them apart."""
        how = self._how.get(key)
        if how is None or how.kind.startswith("bitsandbytes"):
            return False
        stored, mine = self._source.load(key), self.load(key)
        scale = self._scale({name: self._source.load(at) for name, at in how.companions.items()}, stored).abs()
        relative, least = _HALF_STEPS.get(str(stored.dtype).removeprefix("torch."), (0.0, 0.5))
        room = torch.maximum(mine.abs() * relative, scale.expand_as(mine) * least) * _SLACK
        return bool(((mine - other.float()).abs() <= room).all())

    def _scale(self, parts: Mapping[str, Tensor], stored: Tensor) -> Tensor:
        scale = parts.get("scale")
        if scale is None:
            return torch.ones(())
        found = _fitted(scale.float(), tuple(stored.shape))
        return found / _INT8 if "SCB" in parts else found


def of(source: TensorSource) -> TensorSource:
    """`source` with its quantised weights read as numbers. Raises UnsupportedError."""
    found = Dequantised(source)
    return found if found.kinds or len(found.shapes) < len(source.shapes) else source


def scale_alone(source: TensorSource) -> str | None:
    """A scale whose weight is not in this file, where it would be taken for plain numbers in the other one."""
    for key in source.shapes:
        for name in _SCALES:
            module = key.removesuffix(f".{name}")
            if module != key and f"{module}{WEIGHT}" not in source.shapes:
                return key
    return None


def _refuse_foreign(source: TensorSource) -> None:
    for key in source.shapes:
        for mark, kind in _FOREIGN.items():
            if key.endswith(mark):
                raise UnsupportedError(
                    f"{source.path} is quantised ({kind}: {key}), which cannot be read: use the model it was made from"
                )


def _how(key: str, source: TensorSource) -> _How | None:
    if not key.endswith(WEIGHT):
        return None
    module, shape = key.removesuffix(WEIGHT), source.shapes[key]
    bits = {name: f"{key}.{name}" for name in _BNB if f"{key}.{name}" in source.shapes}
    if bits:
        state = next((name for name in bits if name.startswith(_BNB_STATE)), None)
        if state is None:
            raise UnsupportedError(
                f"{source.path}: {key} is quantised in an unknown way: use the model it was made from"
            )
        parts = {"state" if name == state else name: at for name, at in bits.items()}
        kind = f"bitsandbytes {state.removeprefix(_BNB_STATE).upper()}"
        return _How(kind, tuple(_state(source.load(bits[state]), source, key)["shape"]), parts)
    name = next((name for name in _SCALES if f"{module}.{name}" in source.shapes), None)
    dtype = str(source.load(key).dtype).removeprefix("torch.")
    if name is None and len(shape) > 1 and dtype in ("int8", "uint8", "int16", "int32"):
        raise UnsupportedError(
            f"{source.path} is quantised: {key} is {dtype} without a scale, so its values are unknown: "
            "use the model it was made from"
        )
    companions = {"scale": f"{module}.{name}"} if name else {}
    if name == "SCB":
        companions["SCB"] = f"{module}.{name}"
    if dtype.startswith("float8"):
        return _How(f"scaled {dtype}" if name else f"plain {dtype}", shape, companions)
    return _How(f"scaled {dtype}", shape, companions) if name else None


def _is_note(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in (*_ACTIVATIONS, *_MARKERS)


def _fitted(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`scale` so that it multiplies a weight of `shape`: one number, one a row, or one a block of a row or of both."""
    if scale.numel() == 1:
        return scale.reshape(())
    rows, columns = shape[0], math.prod(shape[1:])
    if scale.numel() == rows:
        return scale.reshape(rows, *(1 for _ in shape[1:]))
    if len(shape) == 2 and scale.shape[0] == rows and columns % (scale.numel() // rows) == 0:
        blocks = scale.reshape(rows, -1)
        return blocks.repeat_interleave(columns // blocks.shape[1], 1)
    if len(shape) == 2 and tuple(scale.shape) == (-(-rows // _BLOCK), -(-columns // _BLOCK)):
        return scale.repeat_interleave(_BLOCK, 0)[:rows].repeat_interleave(_BLOCK, 1)[:, :columns]
    raise ValueError(f"a scale of {tuple(scale.shape)} for a weight of {shape}")


def _state(tensor: Tensor, source: TensorSource, key: str) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(bytes(tensor.to(torch.uint8).tolist()))
        if not all(type(length) is int and length > 0 for length in found["shape"]):
            raise ValueError("no shape")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{source.path} is damaged: the quantisation of {key} is not readable") from error
    return found


def _four_bits(packed: Tensor, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """bitsandbytes: two codes in a byte, high half first; a scale a block, which may be quantised itself."""
    state = json.loads(bytes(parts["state"].tolist()))
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        outer = parts["nested_absmax"].float().repeat_interleave(int(state["nested_blocksize"]))[: absmax.numel()]
        absmax = parts["nested_quant_map"].float()[absmax.long()] * outer + float(state["nested_offset"])
    codes = packed.reshape(-1)
    levels = torch.stack([codes >> 4, codes & 15], 1).flatten().long()
    count = math.prod(shape)
    values = parts["quant_map"].float()[levels][:count]
    return (values * absmax.float().repeat_interleave(int(state["blocksize"]))[:count]).view(shape)
