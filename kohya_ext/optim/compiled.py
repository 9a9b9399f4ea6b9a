"""The `fused` path: the formula of `functional`, compiled into one kernel by torch (C++ on a CPU, Triton on a GPU).

Elementwise code that reads and writes everything once runs near the memory's speed. It has the bits of the eager path:
roundings to bfloat16 are written as integer arithmetic, which no compiler leaves out, and the constants are those of
the device.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kohya_ext.optim import compiled_codes
from kohya_ext.optim.eager import Job
from kohya_ext.optim.functional import (
    Constants,
    Rule,
    Stepped,
    constants,
    found,
    momentum_dtype,
    needs_only_upper_half,
    needs_words,
    newest_share,
    step_full,
    step_half,
)
from kohya_ext.optim.kernel_arguments import (
    cannot_compile,
    keys_on,
    lanes_of,
    number_dtype,
    numbers_of,
    shape_of,
    vector,
)
from kohya_ext.tensors.compiled import (
    WIDTH,
    any_rows,
    compile_kernel,
    exact_options,
    first_elements,
    masked,
    table_of,
)
from kohya_ext.tensors.rounding import as_bfloat16_by_bits, element_indices, random_words, stream_key

# Smaller tensors are stepped eagerly: the checks before a compiled call would take longer than the step.
SMALLEST = 1 << 12

# torch generates code for the size it sees first, even with dynamic shapes: a small one would get serial loops.
FIRST_ROWS = (1 << 14) + 3

# Tensors a call: the more, the fewer calls, and the longer it takes to compile.
GROUP = 4

# weights, gradient, accumulator, device
_Kind = tuple[torch.dtype, torch.dtype, torch.dtype, torch.device]
_Kernel = Callable[..., Tensor]


def step_many(rule: Rule, jobs: Sequence[Job]) -> list[Tensor]:
    """One step in place of flat tensors of at least SMALLEST elements, GROUP at a time.

    Returns how many elements were skipped, in 0-dimensional tensors. Raises RuntimeError where torch cannot compile.
    """
    kinds: dict[_Kind, list[Job]] = defaultdict(list)
    for job in jobs:
        vt = job.state["vt"]
        kinds[job.weights.dtype, job.gradient.dtype, vt.dtype, vt.device].append(job)
    counts: list[Tensor] = []
    for kind, alike in kinds.items():
        if kind[2] == torch.uint8:
            counts += [count for job in alike for count in compiled_codes.step(rule, job)]
            continue
        size = GROUP if len(alike) > 1 else 1
        groups = (alike[first : first + size] for first in range(0, len(alike), size))
        counts += [_step_group(rule, kind, group, size) for group in groups]
        counts += [_step_end(rule, job) for job in alike if job.weights.numel() % WIDTH]
    return counts


def _step_group(rule: Rule, kind: _Kind, jobs: list[Job], size: int) -> Tensor:
    """Jobs of one kind, at most `size` of them, in one call: before each, torch checks its arguments for 50 us."""
    random = needs_words(rule, kind[0], kind[2])
    shape = shape_of(rule)
    kernel, spread = _kernel(shape, random, kind, size), _layout(shape, kind).spread
    rows = [[table_of(flat, spread=spread) for flat in _columns(rule, job)] for job in jobs]
    rows += [_padding(_dtypes(rule, kind), kind[3], spread)] * (size - len(rows))
    columns = [list(column) for column in zip(*rows, strict=True)]
    numbers = numbers_of(rule, kind[2], kind[3], size)
    if rule.auto_lr:  # once here, not again for each vector of elements
        numbers = numbers.clone()
        factors = torch.stack([job.state["factor"] for job in jobs])
        numbers[: len(jobs), :2].mul_(factors[:, None])  # growth and scale
    shares = None
    if rule.momentum:
        each = [newest_share(rule, job.step) for job in jobs]
        shares = vector(tuple(each + [1.0] * (size - len(each))), number_dtype(kind[2]), kind[3])
    keys = [stream_key(rule.seed, job.step, job.place) for job in jobs] if random else []
    words = keys_on(kind[3], tuple(keys + [0] * (size - len(keys))))
    return kernel(columns, numbers, words, lanes_of(rows[0][0].shape[-1], kind[3]), shares)


def _columns(rule: Rule, job: Job) -> list[Tensor]:
    """The tensors of a job that a step reads and writes."""
    columns = [job.weights, job.gradient, job.state["vt"]]
    return [*columns, job.state["momentum"]] if rule.momentum else columns


def _dtypes(rule: Rule, kind: _Kind) -> tuple[torch.dtype, ...]:
    """Theirs."""
    return (*kind[:3], momentum_dtype(kind[2])) if rule.momentum else kind[:3]


def _step_end(rule: Rule, job: Job) -> Tensor:
    """The same, eagerly, for the elements that fill no row."""
    vt = job.state["vt"]
    start = job.weights.numel() // WIDTH * WIDTH
    weights, gradient, end, *momentum = (flat[start:] for flat in _columns(rule, job))
    words = None
    if needs_words(rule, weights.dtype, vt.dtype):
        key = stream_key(rule.seed, job.step, job.place)
        words = random_words(key, element_indices(start, weights.numel(), vt.device))
    formula = step_half if vt.dtype == torch.bfloat16 else step_full
    factor = job.state["factor"] if rule.auto_lr else None
    numbers = found(constants(rule, vt.dtype, vt.device), factor, newest_share(rule, job.step))
    new = formula(weights, gradient, end, numbers, rule, words, *momentum)
    weights.copy_(new.weights)
    end.copy_(new.state)
    if new.momentum is not None:
        momentum[0].copy_(new.momentum)
    return (~new.usable).sum(dtype=torch.int32)


@functools.lru_cache(maxsize=64)
def _padding(dtypes: tuple[torch.dtype, ...], device: torch.device, spread: bool) -> list[Tensor]:
    """A stand-in that fills up a group: without a gradient it stays as it is."""
    return [table_of(torch.zeros(2 * WIDTH, dtype=dtype, device=device), spread=spread) for dtype in dtypes]


class TableLayout(NamedTuple):
    """How the tables of a kernel are laid out, and the bits of its vectors (None: as torch chooses)."""

    spread: bool
    widest: int | None


@functools.lru_cache(maxsize=64)  # torch copies all of its options to list them
def _layout(rule: Rule, kind: _Kind) -> TableLayout:
    """What is fastest, measured: a single half is better narrow than spread where random bits are made as well."""
    halves = masked(_dtypes(rule, kind), kind[3])
    if halves == 1 and needs_words(rule, kind[0], kind[2]):
        return TableLayout(spread=False, widest=256)
    return TableLayout(spread=halves > 0, widest=None)


@functools.lru_cache(maxsize=64)
def _kernel(rule: Rule, random: bool, kind: _Kind, size: int) -> _Kernel:
    """A compiled kernel for one combination of settings and types, and so many tensors."""
    formula: Callable[..., Stepped] = step_full
    if kind[2] == torch.bfloat16:
        formula = functools.partial(step_half, rounded=as_bfloat16_by_bits)

    upper = needs_only_upper_half(rule, kind[0])

    def step(
        columns: list[list[Tensor]],
        numbers: Tensor,
        keys: Tensor,
        lanes: Tensor,
        shares: Tensor | None,
    ) -> Tensor:
        newest = [1.0] * size if shares is None else shares.unbind()
        skipped = keys.new_zeros(())
        for *row, key, own, share in zip(*columns, keys.unbind(), numbers.unbind(), newest, strict=True):
            table, gradient, vt, *momentum = row
            words = None
            if random:
                words = random_words(key + lanes[0], first_elements(table), upper=upper)
            new = formula(table, gradient, vt, found(Constants(*own.unbind()), None, share), rule, words, *momentum)
            table.copy_(new.weights)
            vt.copy_(new.state)
            if new.momentum is not None:
                momentum[0].copy_(new.momentum)
            # the sum is joined to the loop only where both go through rows and lanes, or neither does
            one = lanes[1] if random else keys.new_ones(())
            skipped = skipped + torch.where(new.usable, 0, one).sum(dtype=torch.int32)
        return skipped

    def first_call(kernel: _Kernel) -> None:
        numbers = numbers_of(rule, kind[2], kind[3], size)
        shares = numbers.new_ones(size) if rule.momentum else None
        keys = keys_on(kind[3], (0,) * size)
        tables = _first_tables(_dtypes(rule, kind), kind[3], size, layout.spread)
        kernel(tables, numbers, keys, lanes_of(tables[0][0].shape[-1], kind[3]), shares)

    layout = _layout(rule, kind)
    name = f"adacoor_step_{_kernel.cache_info().misses}"
    try:
        return compile_kernel(step, name, first_call, exact_options(layout.widest, spread=layout.spread))
    except Exception as error:
        raise cannot_compile(kind[3], error) from error


def _first_tables(dtypes: tuple[torch.dtype, ...], device: torch.device, size: int, spread: bool) -> list[list[Tensor]]:
    """What the first call sees, and torch generates code for: of any number of rows, and no two alike."""
    columns = []
    for dtype in dtypes:
        flat = (torch.zeros((FIRST_ROWS + number) * WIDTH, dtype=dtype, device=device) for number in range(size))
        tables = [table_of(one, spread=spread) for one in flat]
        any_rows(tables)
        columns.append(tables)
    return columns
