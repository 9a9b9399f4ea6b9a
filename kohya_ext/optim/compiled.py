"""The `fused` path: the formula of `rule`, compiled into one kernel by torch (C++ on a CPU, Triton on a GPU).

Elementwise code that reads and writes everything once runs near the memory's speed. It has the bits of the eager path:
roundings to bfloat16 are written as integer arithmetic, which no compiler leaves out, and the constants are those of
the device.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import torch
from torch import Tensor

from kohya_ext.optim import compiler
from kohya_ext.optim.rule import Constants, Rule, Stepped, constants, needs_words, step_full, step_half
from kohya_ext.rounding import as_bfloat16_by_bits, element_indices, random_words, stream_key

# Smaller tensors are stepped eagerly: the checks before a compiled call would take longer than the step.
SMALLEST = 1 << 12

# The kernels see tables of this width, so that they need not look for a loose end at every step of their loops; what is
# left over is stepped eagerly.
_WIDTH = 64
# torch generates code for the size it sees first, even with dynamic shapes: a small one would get serial loops.
_FIRST_ROWS = (1 << 14) + 3

_Kernel = Callable[..., Tensor]


class CompiledStep:
    """Steps flat tensors in place with compiled kernels."""

    def step(
        self, rule: Rule, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int, index: int
    ) -> Tensor:
        """One step of a flat tensor; returns how many elements were skipped, a 0-dimensional tensor."""
        vt = state["vt"]
        random = needs_words(rule, weights.dtype, vt.dtype)
        kernel = _kernel(_shape_of(rule), random, weights.dtype, gradient.dtype, vt.dtype, weights.device)
        key = stream_key(rule.seed, step, index) if random else 0
        rows, left = divmod(weights.numel(), _WIDTH)
        end = rows * _WIDTH
        tables = (flat[:end].view(rows, _WIDTH) for flat in (weights, gradient, vt))
        skipped = kernel(*tables, _numbers(rule, vt.dtype, weights.device), _word(key, weights.device))
        if left:
            words = random_words(key, element_indices(end, left, weights.device)) if random else None
            skipped = skipped + _step_end(rule, weights[end:], gradient[end:], vt[end:], words)
        return skipped


def _step_end(rule: Rule, weights: Tensor, gradient: Tensor, vt: Tensor, words: Tensor | None) -> Tensor:
    """The same, eagerly, for the elements that fill no row."""
    formula = step_half if vt.dtype == torch.bfloat16 else step_full
    new = formula(weights, gradient, vt, constants(rule, vt.dtype, weights.device), rule, words)
    weights.copy_(new.weights)
    vt.copy_(new.state)
    return (~new.usable).sum(dtype=torch.int32)


def _numbers(rule: Rule, state_dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers of the rule as one tensor: as Python numbers they would be compiled in."""
    own = constants(rule, state_dtype, device)
    dtype = torch.float64 if state_dtype == torch.float64 else torch.float32
    values = (own.growth, own.scale, own.added, own.negative_lr, own.decay)
    return _vector(tuple(float(value) for value in values), dtype, device)


@functools.lru_cache(maxsize=256)
def _vector(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    vector = torch.tensor(values, dtype=dtype)
    return vector if device.type == "cpu" else vector.pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=1)
def _word(key: int, device: torch.device) -> Tensor:
    return torch.full((), key, dtype=torch.int32, device=device)


def _shape_of(rule: Rule) -> Rule:
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
    )


@functools.lru_cache(maxsize=64)
def _kernel(
    rule: Rule,
    random: bool,
    weights_dtype: torch.dtype,
    gradient_dtype: torch.dtype,
    state_dtype: torch.dtype,
    device: torch.device,
) -> _Kernel:
    """A compiled kernel for one combination of settings and types."""
    formula: Callable[..., Stepped] = step_full
    if state_dtype == torch.bfloat16:
        formula = functools.partial(step_half, rounded=as_bfloat16_by_bits)

    def step(weights: Tensor, gradient: Tensor, vt: Tensor, numbers: Tensor, key: Tensor) -> Tensor:
        words = None
        if random:
            elements = torch.arange(weights.numel(), dtype=torch.int32, device=weights.device)
            words = random_words(key, elements.view(weights.shape))
        growth, scale, added, negative_lr, decay = numbers.unbind()
        new = formula(weights, gradient, vt, Constants(growth, scale, added, negative_lr, decay), rule, words)
        weights.copy_(new.weights)
        vt.copy_(new.state)
        return (~new.usable).to(torch.int32).sum(dtype=torch.int32)

    # torch caches compilations by code object and gives up after a few: each combination gets its own
    code = step.__code__.replace(co_name=f"adacoor_step_{_kernel.cache_info().misses}")
    own = types.FunctionType(code, step.__globals__, code.co_name, step.__defaults__, step.__closure__)
    tables = [
        torch.zeros(_FIRST_ROWS, _WIDTH, dtype=dtype, device=device)
        for dtype in (weights_dtype, gradient_dtype, state_dtype)
    ]
    for table in tables:
        torch._dynamo.mark_dynamic(table, 0)
    for options in compiler.OPTIONS:
        try:
            kernel = torch.compile(own, fullgraph=True, options=options)
            kernel(*tables, _numbers(rule, state_dtype, device), _word(0, device))
            return kernel
        except Exception as error:  # noqa: PERF203  (the compilers raise whatever they like)
            failure = error
    raise RuntimeError(
        f"fused=True: torch {torch.__version__} cannot compile the step on {device} ({type(failure).__name__}); "
        "it needs a recent torch and a C++ compiler or Triton. Leave `fused` out to go on without"
    ) from failure
