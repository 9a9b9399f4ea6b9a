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

_Kernel = Callable[[list[list[Tensor]], list[Tensor], list[Tensor]], None]


class CannotCompileError(RuntimeError):
    """torch cannot compile here; nothing has been blended."""


def blend_(shadows: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], numbers: Sequence[float]) -> None:
    """lerp in place where the weights are finite.

    Args:
        shadows: of each average, one for each of the weights: flat, all float32 or all float64.
        weights: flat tensors of one floating dtype, on the device of the shadows. They are read once for all averages.
        numbers: the w of each average, below HEAVIEST.

    Raises:
        CannotCompileError: nothing has been blended.
    """
    first = shadows[0][0]
    kind = (first.dtype, weights[0].dtype, first.device)
    scalars = [_scalar(number, first.dtype, first.device) for number in numbers]
    into, newest = [_tables(own) for own in shadows], _tables(weights)
    if len(newest) == 1:
        _kernel(*kind, 1, len(shadows))(into, newest, scalars)
    elif newest:
        _blend_groups(_kernel(*kind, GROUP, len(shadows)), into, newest, scalars)
    _guarded_lerp([_ends(own) for own in shadows], _ends(weights), scalars)


def _blend_groups(kernel: _Kernel, shadows: list[list[Tensor]], weights: list[Tensor], numbers: list[Tensor]) -> None:
    for first in range(0, len(weights), GROUP):
        into, newest = [own[first : first + GROUP] for own in shadows], weights[first : first + GROUP]
        filled = len(newest)
        if filled < GROUP:
            into = [own + _padding(own[0].dtype, own[0].device, number)[filled:] for number, own in enumerate(into)]
            newest = newest + _padding(newest[0].dtype, newest[0].device, -1)[filled:]
        kernel(into, newest, numbers)


def _tables(flat: Sequence[Tensor]) -> list[Tensor]:
    return [table_of(tensor) for tensor in flat if rows_of(tensor.numel())]


def _ends(flat: Sequence[Tensor]) -> list[Tensor]:
    """What the tables leave over; where that is nothing, nothing."""
    starts = ((tensor, rows_of(tensor.numel()) * WIDTH) for tensor in flat)
    return [tensor[start:] for tensor, start in starts if start < tensor.numel()]


@functools.lru_cache(maxsize=8)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


@functools.lru_cache(maxsize=8)
def _padding(dtype: torch.dtype, device: torch.device, place: int) -> list[Tensor]:
    """Stand-ins that fill up the last group: another number of tensors would be compiled again.

    place: of the average, or -1 for the weights: what is written may not be one tensor under two names.
    """
    return [torch.zeros(2, WIDTH, dtype=dtype, device=device) for _ in range(GROUP)]


@functools.lru_cache(maxsize=16)
def _kernel(
    shadow_dtype: torch.dtype, weights_dtype: torch.dtype, device: torch.device, tensors: int, averages: int
) -> _Kernel:
    right = False

    def first_call(kernel: _Kernel) -> None:
        nonlocal right
        right = _is_right(kernel, shadow_dtype, weights_dtype, device, tensors, averages)

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
    kernel: _Kernel,
    shadow_dtype: torch.dtype,
    weights_dtype: torch.dtype,
    device: torch.device,
    tensors: int,
    averages: int,
) -> bool:
    """Compile by a first call, on numbers whose average is known."""
    sizes = [(_FIRST_ROWS + number, WIDTH) for number in range(tensors)]
    shadows = [[torch.full(size, 0.25, dtype=shadow_dtype, device=device) for size in sizes] for _ in range(averages)]
    weights = [torch.ones(size, dtype=weights_dtype, device=device) for size in sizes]
    for newest in weights:
        newest[5, 0], newest[6, 1], newest[-1, -1] = math.nan, math.inf, -math.inf
    any_rows([*(shadow for own in shadows for shadow in own), *weights])
    parts = [0.25 / 2**number for number in range(averages)]
    kernel(shadows, weights, [_scalar(part, shadow_dtype, device) for part in parts])
    return all(_is_blended(shadow, 0.25, part) for own, part in zip(shadows, parts, strict=True) for shadow in own)


def _is_blended(shadow: Tensor, before: float, part: float) -> bool:
    """Whether ones went into a shadow, but for three elements."""
    kept_out = all(shadow[place] == before for place in ((5, 0), (6, 1), (-1, -1)))
    return kept_out and int((shadow == before + part * (1 - before)).sum()) == shadow.numel() - 3


def _guarded_lerp(shadows: list[list[Tensor]], weights: list[Tensor], numbers: list[Tensor]) -> None:
    for place, newest in enumerate(weights):
        for own, number in zip(shadows, numbers, strict=True):
            shadow = own[place]
            upcast = newest.to(shadow.dtype)
            finite = upcast.abs() < math.inf
            shadow.copy_(torch.where(finite, shadow + number * (upcast - shadow), shadow))
