"""What torch does otherwise on a GPU, done on a CPU: the precisions of autocast, and how its optimizers step."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

KEY = "AutocastCPU"
# Operations that a GPU's autocast runs in float32 and a CPU's leaves alone.
IN_FLOAT32 = (
    "layer_norm", "group_norm", "softmax.int", "log_softmax.int", "mse_loss", "exp", "log", "pow.Tensor_Scalar",
    "rsqrt", "reciprocal", "sum", "sum.dim_IntList", "cumsum", "norm.Scalar", "smooth_l1_loss", "huber_loss",
)  # fmt: skip
HALVES = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def autocast_as_cuda() -> Iterator[None]:
    """While this lasts, autocast on a CPU treats these operations as a GPU's does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are registered a second time
        library = torch.library.Library("aten", "IMPL")
        for name in IN_FLOAT32:
            with contextlib.suppress(RuntimeError):  # a torch that has not this overload
                library.impl(name, _in_float32(name), KEY)
    try:
        yield
    finally:
        library._destroy()


def _in_float32(name: str) -> Callable[..., Any]:
    base, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, base), overload or "default")

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operation(*(_float32(one) for one in args), **{key: _float32(one) for key, one in kwargs.items()})

    return call


def _float32(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, torch.Tensor) and value.dtype in HALVES else value


# How torch's optimizers choose between one tensor after the other and lists of all of a group's.
CHOICE = "_default_to_fused_or_foreach"


@contextlib.contextmanager
def optimizers_as_cuda() -> Iterator[None]:
    """While this lasts, torch's optimizers step lists of tensors where they would on a GPU.

    There AdamW takes the roots of all second moments of a group at once, and holds another copy of its size with them.
    """
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("torch.optim.")]
    before = [(module, getattr(module, CHOICE)) for module in modules if hasattr(module, CHOICE)]
    for module, choice in before:
        setattr(module, CHOICE, _in_lists(choice))
    try:
        yield
    finally:
        for module, choice in before:
            setattr(module, CHOICE, choice)


def _in_lists(original: Callable[..., tuple[bool, bool]]) -> Callable[..., tuple[bool, bool]]:
    @functools.wraps(original)
    def call(params: list[Any], differentiable: bool, *args: Any, **kwargs: Any) -> tuple[bool, bool]:
        fused, foreach = original(params, differentiable, *args, **kwargs)
        return fused, foreach or not (fused or differentiable)

    return call
