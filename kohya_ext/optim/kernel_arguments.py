"""What compiled steps are given next to the tensors: numbers that would be compiled in if they were Python's."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kohya_ext.optim.functional import Rule, constants
from kohya_ext.tensors.elements import kept, on_device
from kohya_ext.tensors.rounding import keys_of_lanes


def shape_of(rule: Rule) -> Rule:
    """The rule without the numbers that change from step to step and are passed as tensors."""
    return Rule(
        lr=1.0,
        eps=1.0,
        decay=1.0 if rule.decay == 1 else 0.5,  # whether there is any is compiled in
        vt_rate=1.0,
        maximize=rule.maximize,
        state_bits=rule.state_bits,
        stochastic_state=rule.stochastic_state,
        stochastic_weights=rule.stochastic_weights,
        seed=0,
        auto_lr=rule.auto_lr,
        momentum=rule.momentum,
    )


def numbers_of(rule: Rule, state_dtype: torch.dtype, device: torch.device, rows: int) -> Tensor:
    """The numbers of the rule as (rows, 5), in the order of `Constants`, each row the same. Not to be written to."""
    own = constants(rule, state_dtype, device)
    values = (own.growth, own.scale, own.added, own.negative_lr, own.decay)
    return vector(tuple(float(value) for value in values) * rows, number_dtype(state_dtype), device).view(rows, -1)


def number_dtype(state_dtype: torch.dtype) -> torch.dtype:
    """The type of the numbers for an accumulator of this type."""
    return torch.float64 if state_dtype == torch.float64 else torch.float32


@kept
def vector(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device."""
    return on_device(torch.tensor(values, dtype=dtype), device)


@functools.lru_cache(maxsize=2)
def keys_on(device: torch.device, values: tuple[int, ...]) -> Tensor:
    """Keys of random bits on a device."""
    return on_device(torch.tensor(values, dtype=torch.int32), device)


@functools.lru_cache(maxsize=8)
def lanes_of(width: int, device: torch.device) -> Tensor:
    """What the elements of a row of a table add to its key, and a row of ones."""
    keys = keys_of_lanes(width, device)
    return torch.stack([keys, torch.ones_like(keys)])


def cannot_compile(device: torch.device, error: Exception) -> RuntimeError:
    """What a user is told who has asked for compiled steps."""
    return RuntimeError(
        f"fused=True: torch {torch.__version__} cannot compile the step on {device} ({type(error).__name__}); "
        "it needs a recent torch and a C++ compiler or Triton. Omit `fused` to continue without it"
    )
