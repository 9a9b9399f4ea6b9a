"""Torch on tensors that have shapes but no contents, as far as a training script needs more than torch gives.

A tensor on the training device has the device `cpu:0` here, one in the host's memory `cpu`: torch's fake tensors keep
the two apart, refuse to mix them as a GPU does, and a Python without CUDA can follow both.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kohya_ext.tracing.as_cuda import autocast_as_cuda, optimizers_as_cuda
from kohya_ext.tracing.ledger import Ledger
from kohya_ext.tracing.repeats import Repeats

DEVICE = "cpu:0"
NUMBER = 0.5  # what a number read from a tensor without contents is
_DEVICE = torch.ops.prim.device.default
_NUMBER_OF = torch.ops.aten._local_scalar_dense.default
_EQUAL = torch.ops.aten.equal.default
_ANY = torch.ops.aten.any.default
_ALL = torch.ops.aten.all.default
_NONZERO = torch.ops.aten.nonzero.default
_TO_COPY = torch.ops.aten._to_copy.default
# What fills new weights: there is nothing to fill, and a model has thousands of them.
_FILLERS = ("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "xavier_uniform_",
            "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_")  # fmt: skip
_ZEROS = "zeros_"
_IS_ZERO, _IS_TRUE = "_kohya_ext_is_zero", "_kohya_ext_is_true"  # what is known of a tensor without contents


class FakeWorld(FakeTensorMode):  # type: ignore[misc]
    """Fake tensors, and answers for what a script reads from them: there is nothing in them.

    ledger: hears of every operation; None where nobody counts.
    """

    def __init__(self, ledger: Ledger | None) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.ledger = ledger
        self._repeats = Repeats(self)
        self._inside = 0  # operations that torch is taking apart: of their parts a kernel keeps nothing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # torch asks for it several times with each operation
            return torch.device("meta") if self.in_kernel_invocation else args[0].fake_device
        if func is _NUMBER_OF and isinstance(args[0], FakeTensor):
            kind = args[0].dtype
            if kind == torch.bool:
                return getattr(args[0], _IS_TRUE, False)
            if kind.is_floating_point:
                return NUMBER
            return 1 if args[0].constant is None else int(args[0].constant)
        if func is _EQUAL:
            return True
        if func is _NONZERO and args[0].dtype == torch.bool:
            with self:  # scripts look up where a timestep is among all of them: in one place, the first
                return torch.tensor([[0] * args[0].dim()])
        if func is _TO_COPY and getattr(args[0], "constant", None) is not None:
            args[0].constant = None  # torch would copy the number that it remembers, and that one is on the host
        made = self._repeats.run(self._work_out, func, types, args, kwargs or {})
        if func is _ANY and args[0].is_floating_point():  # Prodigy asks whether a weight is all zeros
            setattr(made, _IS_TRUE, not getattr(args[0], _IS_ZERO, False))
        elif func is _ALL:  # of a batch: whether its numbers are equal, or finite
            setattr(made, _IS_TRUE, True)
        if self.ledger is not None and not self._inside:
            self.ledger.note(func, args, made)
        return made

    def _work_out(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        self._inside += 1
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._inside -= 1


def _zeros(tensor: Any) -> Any:
    import numpy

    kinds = {
        torch.float64: numpy.float64, torch.float16: numpy.float16, torch.int64: numpy.int64,
        torch.int32: numpy.int32, torch.uint8: numpy.uint8, torch.bool: numpy.bool_,
    }  # fmt: skip
    return numpy.zeros(tuple(tensor.shape), kinds.get(tensor.dtype, numpy.float32))


def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
    """Module._apply: parameters without contents cannot be swapped, so they are exchanged where they change."""
    if recurse:
        for module in self.children():
            module._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            new = fn(parameter)
            gradient = None if parameter.grad is None else fn(parameter.grad)
        if new is not parameter and (new.dtype != parameter.dtype or new.device != parameter.device):
            parameter.data = new.detach()
        if gradient is not None:
            parameter.grad = gradient
        self._parameters[key] = parameter
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self


def _exchange(self: Any, value: Any) -> None:
    """`tensor.data = value`: torch does not say that the tensor is on another device now. Swapped blocks do it."""
    torch.Tensor.data.__set__(self, value)
    self.fake_device = value.device


class _AtOnce(concurrent.futures.Executor):
    """In the place of a pool of threads: torch's fake tensors bear one thread only, and swapped blocks have another."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


def _set_tensor(module: Any, name: str, device: Any, value: Any = None, dtype: Any = None, **_: Any) -> None:
    """accelerate's `set_module_tensor_to_device`."""
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    old = getattr(module, last)
    value = torch.empty(old.shape, dtype=old.dtype, device=device) if value is None else value
    value = value.to(device=device, dtype=dtype or (old.dtype if value.is_floating_point() else None))
    if last in module._parameters:
        wants = old.requires_grad and value.is_floating_point()
        module._parameters[last] = torch.nn.Parameter(value.detach(), requires_grad=wants)
    else:
        module._buffers[last] = value


def _filled(tensor: Any, *_: Any, zeros: bool, **__: Any) -> Any:
    """`torch.nn.init`: there is nothing to fill."""
    setattr(tensor, _IS_ZERO, zeros)
    return tensor


def _placed(original: Any) -> Any:
    """`torch.tensor` and its kind: torch puts what they are given into the host's memory, whatever `device` says."""

    @functools.wraps(original)
    def call(data: Any, *args: Any, device: Any = None, requires_grad: bool = False, **more: Any) -> Any:
        made = original(data, *args, **more)
        made = made if device is None else made.to(device)
        return made.requires_grad_() if requires_grad else made

    return call


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    import accelerate.big_modeling
    import accelerate.utils
    import accelerate.utils.modeling

    def not_needed(*_: Any, **__: Any) -> Any:
        return contextlib.nullcontext()  # weights take no memory here anyway

    for module in (accelerate, accelerate.big_modeling):
        yield module, "init_empty_weights", not_needed
    numpy_of, list_of = torch.Tensor.numpy, torch.Tensor.tolist
    yield torch.Tensor, "numpy", lambda self, **more: _zeros(self) if fake(self) else numpy_of(self, **more)
    yield torch.Tensor, "tolist", lambda self: _zeros(self).tolist() if fake(self) else list_of(self)
    yield concurrent.futures, "ThreadPoolExecutor", _AtOnce
    yield torch.nn.Module, "_apply", _apply
    yield FakeTensor, "data", property(torch.Tensor.data.__get__, _exchange)
    copied = torch.Tensor.__deepcopy__

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        if not fake(self):
            return copied(self, memo)
        memo[id(self)] = made = self.detach().clone().requires_grad_(self.requires_grad)
        return made

    yield torch.Tensor, "__deepcopy__", deepcopy
    for name in ("tensor", "as_tensor"):
        yield torch, name, _placed(getattr(torch, name))
    for name in _FILLERS:
        yield torch.nn.init, name, functools.partial(_filled, zeros=name == _ZEROS)
    for module in (accelerate.utils, accelerate.utils.modeling):
        yield module, "set_module_tensor_to_device", _set_tensor


def fake(tensor: Any) -> bool:
    """Whether a tensor has no contents."""
    return isinstance(tensor, FakeTensor)


@contextlib.contextmanager
def fake_world(ledger: Ledger | None, *, as_cuda: bool) -> Iterator[None]:
    """All that torch makes inside has no contents.

    Args:
        ledger: counts it; None: nobody does.
        as_cuda: autocast and torch's optimizers work as on a GPU, not as on a CPU.
    """
    for owner, name, value in _replacements():
        setattr(owner, name, value)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeWorld(ledger))
        if as_cuda and ledger is not None:
            stack.enter_context(autocast_as_cuda())
            stack.enter_context(optimizers_as_cuda())
        yield
