"""The `fused` path: the formula of `rule`, compiled into one kernel by torch (C++ on a CPU, Triton on a GPU).

Elementwise code that reads and writes everything once runs near the memory's speed. Two settings keep the bits of the
eager path: intermediate roundings to bfloat16 are kept, and the constants are those of the device.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import torch
from torch import Tensor

from kohya_ext.optim.rule import Constants, Rule, constants, needs_words, step_full, step_half
from kohya_ext.rounding import random_words, stream_key

# Tensors below this are stepped eagerly: dynamic shapes are specialised for sizes 0 and 1.
SMALLEST = 2

_OPTIONS = {"emulate_precision_casts": True}
_Kernel = Callable[..., Tensor]


class CompiledStep:
    """Steps flat tensors in place with compiled kernels."""

    def step(
        self, rule: Rule, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int, index: int
    ) -> Tensor:
        """One step of a flat tensor; returns how many elements were skipped, a 0-dimensional tensor."""
        vt = state["vt"]
        random = needs_words(rule, weights.dtype, vt.dtype)
        kernel = _kernel(_shape_of(rule), vt.dtype == torch.bfloat16, random)
        numbers = constants(rule, vt.dtype, weights.device)
        dtype = torch.float64 if vt.dtype == torch.float64 else torch.float32
        scalars = [
            _scalar(float(value), dtype, weights.device)
            for value in (numbers.growth, numbers.scale, numbers.added, numbers.negative_lr, numbers.decay)
        ]
        key = stream_key(rule.seed, step, index) if random else 0
        word = torch.full((), key, dtype=torch.int32, device=weights.device)
        return kernel(weights, gradient, vt, *scalars, word)


def _shape_of(rule: Rule) -> Rule:
    """The rule without the numbers that change from step to step and are passed as tensors."""
    return Rule(
        lr=1.0,
        eps=1.0,
        decay=1.0,
        vt_rate=1.0,
        maximize=rule.maximize,
        state_bits=rule.state_bits,
        stochastic_state=rule.stochastic_state,
        stochastic_weights=rule.stochastic_weights,
        seed=0,
    )


@functools.lru_cache(maxsize=256)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def _kernel(rule: Rule, half: bool, random: bool) -> _Kernel:
    """A compiled kernel for one combination of settings; torch compiles it anew for each combination of dtypes."""
    formula = step_half if half else step_full

    def step(
        weights: Tensor,
        gradient: Tensor,
        vt: Tensor,
        growth: Tensor,
        scale: Tensor,
        added: Tensor,
        negative_lr: Tensor,
        decay: Tensor,
        key: Tensor,
    ) -> Tensor:
        words = None
        if random:
            words = random_words(key, torch.arange(weights.numel(), dtype=torch.int32, device=weights.device))
        numbers = Constants(growth, scale, added, negative_lr, decay)
        new = formula(weights, gradient, vt, numbers, rule, words)
        weights.copy_(new.weights)
        vt.copy_(new.state)
        return (~new.usable).sum()

    # torch caches compilations by code object and stops after a few: give each combination its own
    code = step.__code__.replace(co_name=f"step_{rule.maximize:d}{half:d}{random:d}")
    own = types.FunctionType(code, step.__globals__, code.co_name, step.__defaults__, step.__closure__)
    try:
        return torch.compile(own, dynamic=True, fullgraph=True, options=_OPTIONS)
    except RuntimeError as error:
        raise RuntimeError(
            f"fused=True: this torch ({torch.__version__}) cannot compile without changing the rounding; "
            "leave `fused` out"
        ) from error
