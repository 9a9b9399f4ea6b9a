"""The compiled path of the 8-bit accumulator: the formula of `blockwise`, a slice of blocks a call.

A block's scale is known only once all its sums are, so there are two loops, and between them the sums of one slice in
float32: small enough for the cache of a CPU. Codes and scales have the bits of the eager path, weights those of
another root.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kohya_ext.optim import blockwise
from kohya_ext.optim.eager import Job
from kohya_ext.optim.functional import Constants, Rule, constants, found, needs_only_upper_half, newest_share
from kohya_ext.optim.kernel_arguments import cannot_compile, keys_on, lanes_of, numbers_of, shape_of, vector
from kohya_ext.tensors.compiled import any_rows, compile_kernel, exact_options
from kohya_ext.tensors.elements import on_device, slices
from kohya_ext.tensors.rounding import element_indices, random_words, stream_key

# torch generates code for the size it sees first, even with dynamic shapes: a small one would get serial loops.
FIRST_BLOCKS = (1 << 12) + 3

# Elements a call: its scratch takes 4 MB.
_SLICE = 1 << 20

# dtypes of weights and gradient, device
_Kind = tuple[torch.dtype, torch.dtype, torch.device]


def step(rule: Rule, job: Job) -> list[Tensor]:
    """One step in place of flat tensors. Returns how many elements were skipped, in 0-dimensional tensors.

    Raises RuntimeError where torch cannot compile.
    """
    device = job.weights.device
    kernel = _kernel(shape_of(rule), (job.weights.dtype, job.gradient.dtype, device))
    numbers = numbers_of(rule, torch.uint8, device, 1)[0]
    newest = vector((newest_share(rule, job.step),), torch.float32, device) if rule.momentum else None
    factor = job.state["factor"] if rule.auto_lr else None
    look, lanes = blockwise.tables(device), lanes_of(blockwise.BLOCK, device)
    key = keys_on(device, (stream_key(rule.seed, job.step, job.place),))
    whole = job.weights.numel() // blockwise.BLOCK * blockwise.BLOCK
    counts, done = [], 0
    for start, length in slices(whole, _SLICE):
        if length > blockwise.BLOCK:  # a single one would be compiled again
            done = start + length
            columns = [flat[start:done].view(-1, blockwise.BLOCK) for flat in _columns(rule, job)]
            scales = job.state["scale"][start // blockwise.BLOCK : done // blockwise.BLOCK]
            first = _row(start // blockwise.BLOCK, device)
            counts.append(kernel(columns, scales, numbers, key, lanes, first, factor, newest, look))
    return [*counts, *_step_end(rule, job, done)]


def _columns(rule: Rule, job: Job) -> list[Tensor]:
    columns = [job.weights, job.gradient, job.state["vt"]]
    return [*columns, job.state["momentum"]] if rule.momentum else columns


@functools.lru_cache(maxsize=1024)
def _row(number: int, device: torch.device) -> Tensor:
    return on_device(torch.tensor(number, dtype=torch.int32), device)


def _step_end(rule: Rule, job: Job, start: int) -> list[Tensor]:
    """The same, eagerly, from some element on."""
    length = job.weights.numel() - start
    if not length:
        return []
    weights, gradient, codes, *momentum = (flat[start:] for flat in _columns(rule, job))
    scales = job.state["scale"][start // blockwise.BLOCK :]
    plain = constants(rule, torch.uint8, weights.device)
    numbers = found(plain, job.state["factor"] if rule.auto_lr else None, newest_share(rule, job.step))
    key = stream_key(rule.seed, job.step, job.place)
    words = random_words(key, element_indices(start, length, weights.device))
    usable = blockwise.step_(weights, gradient, codes, scales, numbers, rule, words, *momentum)
    return [(~usable).sum(dtype=torch.int32)]


@functools.lru_cache(maxsize=32)
def _kernel(rule: Rule, kind: _Kind) -> Callable[..., Tensor]:
    """A compiled kernel for one combination of settings and types."""
    upper = needs_only_upper_half(rule, kind[0])

    def step(
        columns: list[Tensor],
        scales: Tensor,
        numbers: Tensor,
        key: Tensor,
        lanes: Tensor,
        first: Tensor,
        factor: Tensor | None,
        newest: Tensor | None,
        look: blockwise.CodeTables,
    ) -> Tensor:
        weights, gradient, codes, *momentum = columns
        share = 1.0 if newest is None else newest[0]
        own = found(Constants(*numbers.unbind()), factor, share)
        rows = first + torch.arange(len(codes), dtype=torch.int32, device=codes.device)
        words = random_words(key + lanes[0], blockwise.BLOCK * rows[:, None], upper=upper)
        mean = momentum[0] if momentum else None
        new = blockwise.step_blocks(weights, gradient, codes, scales, own, rule, words, mean, look)
        weights.copy_(new.weights)
        codes.copy_(new.codes)
        scales.copy_(new.scales)
        if mean is not None and new.momentum is not None:
            mean.copy_(new.momentum)
        return torch.where(new.usable, 0, lanes[1]).sum(dtype=torch.int32)

    def first_call(kernel: Callable[..., Tensor]) -> None:
        device = kind[2]
        dtypes = [*kind[:2], torch.uint8, *([torch.bfloat16] if rule.momentum else [])]
        columns = [torch.zeros(FIRST_BLOCKS, blockwise.BLOCK, dtype=dtype, device=device) for dtype in dtypes]
        scales = torch.zeros(FIRST_BLOCKS, device=device)
        any_rows([*columns, scales])
        numbers = numbers_of(rule, torch.uint8, device, 1)[0]
        factor = numbers.new_ones(()) if rule.auto_lr else None
        newest = numbers.new_ones(1) if rule.momentum else None
        lanes, look = lanes_of(blockwise.BLOCK, device), blockwise.tables(device)
        kernel(columns, scales, numbers, keys_on(device, (0,)), lanes, _row(0, device), factor, newest, look)

    name = f"adacoor_codes_{_kernel.cache_info().misses}"
    try:
        return compile_kernel(step, name, first_call, exact_options())
    except Exception as error:
        raise cannot_compile(kind[2], error) from error
