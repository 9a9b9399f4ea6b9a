"""Operations that repeat: what one makes depends on its arguments' shapes alone, so it is worked out once.

A training step repeats a few hundred operations tens of thousands of times. torch keeps results as well, but by longer
keys, which serve compilers too and took most of a traced run's time.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

# Arguments that are part of a key as they are, with their types: 1, 1.0 and True are equal.
_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format))

Key = tuple[Any, ...]
_Metadata = tuple[Any, ...]  # shape, strides, storage offset, dtype, device
Part = Callable[[list[Any]], Any]  # makes a result, or one tensor of it, of a call's tensors


class _UnlikeError(Exception):
    """An argument or a result that is more than its shape."""


class Call:
    """An operation with its arguments. tensors: all of them, in order. key: equal for calls of the same result.

    Raises:
        _UnlikeError: more than shapes decides about the result.
    """

    __slots__ = ("args", "function", "key", "kwargs", "tensors")

    def __init__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.tensors: list[Any] = []
        self.key = self._read_key()

    def _read_key(self) -> Key:
        key: list[Any] = [self.function]
        _read(self.args, key, self.tensors)
        for name, value in self.kwargs.items():
            key.append(name)
            _read((value,), key, self.tensors)
        return tuple(key)

    def has_changed(self) -> bool:
        """Whether the operation has given one of its arguments another shape."""
        self.tensors = []
        return self._read_key() != self.key


class Repeats:
    """Results of operations on fake tensors, by the shapes, strides, dtypes and devices of their arguments.

    mode: whose tensors they are.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[Key, Part] = {}

    def run(self, work_out: Callable[..., Any], function: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operation, given as torch dispatches it. work_out: finds it where it is new."""
        try:
            call = Call(function, args, kwargs)
        except _UnlikeError:
            return work_out(function, types, args, kwargs)
        known = self._known.get(call.key)
        if known is not None:
            return known(call.tensors)
        made = work_out(function, types, args, kwargs)
        with contextlib.suppress(_UnlikeError):
            if not call.has_changed():
                self._known[call.key] = self._recipe(made, call.tensors)
        return made

    def _recipe(self, made: Any, tensors: list[Any]) -> Part:
        if type(made) not in (list, tuple):
            return self._part(made, tensors)
        kind, parts = type(made), [self._part(part, tensors) for part in made]
        own = [one.untyped_storage()._cdata for one in made if one is not None]
        if len(set(own)) < len(own) and not set(own) <= {one.untyped_storage()._cdata for one in tensors}:
            raise _UnlikeError  # new tensors that share a storage
        return lambda tensors: kind([part(tensors) for part in parts])

    def _part(self, made: Any, tensors: list[Any]) -> Part:
        if made is None:
            return lambda _: None
        for place, tensor in enumerate(tensors):
            if made is tensor:
                return operator.itemgetter(place)
        looks = _metadata(made)
        storage = made.untyped_storage()
        for place, tensor in enumerate(tensors):
            if tensor.untyped_storage()._cdata == storage._cdata:
                return functools.partial(self._view, place, looks)
        if self._new(looks, []).untyped_storage().nbytes() != storage.nbytes() or made.storage_offset():
            raise _UnlikeError  # part of something larger
        return functools.partial(self._new, looks)

    def _new(self, looks: _Metadata, tensors: list[Any]) -> Any:
        shape, stride, _, dtype, device = looks
        return FakeTensor(self._mode, torch.empty_strided(shape, stride, dtype=dtype, device="meta"), device)

    def _view(self, place: int, looks: _Metadata, tensors: list[Any]) -> Any:
        shape, stride, offset, dtype, device = looks
        seen = torch.empty((), dtype=dtype, device="meta")
        seen.set_(tensors[place].untyped_storage(), offset, shape, stride)
        return FakeTensor(self._mode, seen, device)


def _read(values: Sequence[Any], key: list[Any], tensors: list[Any]) -> None:
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            key.append(_metadata(value))
            tensors.append(value)
        elif kind in _PLAIN:
            key.append(kind)
            key.append(value)
        elif kind is list or kind is tuple:
            key.append(len(value))
            _read(value, key, tensors)
        else:
            raise _UnlikeError


def _metadata(tensor: Any) -> _Metadata:
    if type(tensor) is not FakeTensor or tensor.constant is not None or tensor.layout is not torch.strided:
        raise _UnlikeError
    dtype = tensor.dtype
    if dtype.is_complex or tensor.is_neg() or tensor.is_inference():
        raise _UnlikeError
    return (tensor.shape, tensor.stride(), tensor.storage_offset(), dtype, tensor.fake_device)
