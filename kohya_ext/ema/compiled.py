"""The guarded update in compiled passes: as fast as an unguarded one, after some seconds of compiling.

It keeps non-finite weights out but does not count them: the sum would cost more than the rest of the pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kohya_ext.tensors.compiled import WIDTH, any_rows, compile_kernel, rows_of, table_of

# Smaller tensors are blended eagerly, many at once.
SMALLEST = 1 << 15
# The compiled formula is exact for weights near 0; the first few updates, with heavier ones, are not worth a second.
HEAVIEST = 0.5
# Averages of fewer weights take milliseconds anyway, and a compilation takes seconds.
WORTHWHILE = 16_000_000
# Tensors a call: before each, torch checks its arguments, which takes as long as blending 100,000 weights.
GROUP = 8
# The first call sees large tensors, or torch would generate serial loops; no two are alike, or torch would take them
# for always alike.
_FIRST_ROWS = 1 << 12

_Kernel = Callable[[list[Tensor], list[Tensor], Tensor], None]


class CannotCompileError(RuntimeError):
    """torch cannot compile here; nothing has been blended."""


def blend_(shadows: Sequence[Tensor], weights: Sequence[Tensor], weight: float) -> None:
    """lerp in place where the weights are finite.

    Flat tensors on one device; the shadows all float32 or all float64, the weights of one floating dtype; a weight
    below HEAVIEST. Raises CannotCompileError before it has blended anything.
    """
    kind = (shadows[0].dtype, weights[0].dtype, shadows[0].device)
    number = _scalar(weight, shadows[0].dtype, shadows[0].device)
    into, newest = _tables(shadows), _tables(weights)
    if len(into) == 1:
        _kernel(*kind, 1)(into, newest, number)
    elif into:
        _blend_groups(_kernel(*kind, GROUP), into, newest, number)
    loose = [part for part in zip(_ends(shadows), _ends(weights), strict=True) if part[0].numel()]
    _guarded_lerp([shadow for shadow, _ in loose], [end for _, end in loose], number)


def _blend_groups(kernel: _Kernel, shadows: list[Tensor], weights: list[Tensor], weight: Tensor) -> None:
    for first in range(0, len(shadows), GROUP):
        into, newest = shadows[first : first + GROUP], weights[first : first + GROUP]
        filled = len(into)
        if filled < GROUP:
            into = into + _padding(into[0].dtype, into[0].device)[filled:]
            newest = newest + _padding(newest[0].dtype, newest[0].device)[filled:]
        kernel(into, newest, weight)


def _tables(flat: Sequence[Tensor]) -> list[Tensor]:
    return [table_of(tensor) for tensor in flat if rows_of(tensor.numel())]


def _ends(flat: Sequence[Tensor]) -> list[Tensor]:
    return [tensor[rows_of(tensor.numel()) * WIDTH :] for tensor in flat]


@functools.lru_cache(maxsize=8)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


@functools.lru_cache(maxsize=8)
def _padding(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Stand-ins that fill up the last group: another number of tensors would be compiled again."""
    return [torch.zeros(2, WIDTH, dtype=dtype, device=device) for _ in range(GROUP)]


@functools.lru_cache(maxsize=16)
def _kernel(shadow_dtype: torch.dtype, weights_dtype: torch.dtype, device: torch.device, tensors: int) -> _Kernel:
    right = False

    def first_call(kernel: _Kernel) -> None:
        nonlocal right
        right = _is_right(kernel, shadow_dtype, weights_dtype, device, tensors)

    try:
        kernel: _Kernel = compile_kernel(_guarded_lerp, f"guarded_lerp_{_kernel.cache_info().misses}", first_call)
    except Exception as error:  # the compilers raise whatever they like
        raise CannotCompileError(
            f"torch {torch.__version__} cannot compile the EMA update on {device} ({type(error).__name__}); "
            "it needs a C++ compiler or Triton"
        ) from error
    if not right:
        raise CannotCompileError(f"torch {torch.__version__} miscompiles the EMA update on {device}")
    return kernel


def _is_right(
    kernel: _Kernel, shadow_dtype: torch.dtype, weights_dtype: torch.dtype, device: torch.device, tensors: int
) -> bool:
    """Compile by a first call, on numbers whose average is known."""
    sizes = [(_FIRST_ROWS + number, WIDTH) for number in range(tensors)]
    shadows = [torch.full(size, 0.25, dtype=shadow_dtype, device=device) for size in sizes]
    weights = [torch.ones(size, dtype=weights_dtype, device=device) for size in sizes]
    for newest in weights:
        newest[5, 0], newest[6, 1], newest[-1, -1] = math.nan, math.inf, -math.inf
    any_rows([*shadows, *weights])
    kernel(shadows, weights, _scalar(0.25, shadow_dtype, device))
    kept_out = all(shadow[place] == 0.25 for shadow in shadows for place in ((5, 0), (6, 1), (-1, -1)))
    return kept_out and all(int((shadow == 0.4375).sum()) == shadow.numel() - 3 for shadow in shadows)


def _guarded_lerp(shadows: list[Tensor], weights: list[Tensor], weight: Tensor) -> None:
    for shadow, newest in zip(shadows, weights, strict=True):
        upcast = newest.to(shadow.dtype)
        finite = upcast.abs() < math.inf
        shadow.copy_(torch.where(finite, shadow + weight * (upcast - shadow), shadow))
