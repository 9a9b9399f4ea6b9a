"""A device that is not the host, on the host: tensors that compute as usual and whose memory is counted apart.

To torch they lie on `meta`, so code that asks for a device sees one that is not the CPU; mixing them with tensors on
the host in one operation fails as it would on a real device.
Within `Placing()`, what is made or moved there is one of them.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
_TO_COPY = torch.ops.aten._to_copy.default
_COPY_INTO = torch.ops.aten.copy_.default


class Memory:
    """Bytes in use on the stand-in device, and the most there have been."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._users: dict[int, int] = {}

    def taken_by(self, tensor: OnDevice) -> None:
        storage = tensor.inner.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._users[place] = self._users.get(place, 0) + 1
        if self._users[place] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self._left, place, size)

    def _left(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self.live -= size


memory = Memory()


class OnDevice(torch.Tensor):
    """A tensor on the stand-in device; `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip
        made.inner = inner
        memory.taken_by(made)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        if func not in (_TO_COPY, _COPY_INTO):
            _refuse_mixture(func, args)
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        here = isinstance(args[0], OnDevice) if func is _COPY_INTO else wanted is None or torch.device(wanted) == DEVICE
        if func._schema.is_mutable:
            return args[0] if func._schema.returns else None
        return tree_map(lambda value: _outer(value, here), result)


class Placing(TorchDispatchMode):
    """While this lasts, tensors asked for on DEVICE are on the stand-in."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") != DEVICE or any(issubclass(kind, OnDevice) for kind in types):
            return func(*args, **kwargs)
        return OnDevice(func(*args, **{**kwargs, "device": torch.device("cpu")}))


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _outer(value: Any, here: bool) -> Any:
    return OnDevice(value) if here and isinstance(value, torch.Tensor) else value


def _refuse_mixture(func: Any, args: Any) -> None:
    given = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.dim()]
    if any(isinstance(arg, OnDevice) for arg in given) and not all(isinstance(arg, OnDevice) for arg in given):
        raise RuntimeError(f"{func}: tensors on two devices")
