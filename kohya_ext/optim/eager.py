"""The eager path: one tensor after the other, slice by slice, with scratch memory that is reused.

By `foreach`, many small tensors are gathered into one slice, stepped together, and scattered back.

Temporary memory does not depend on the size of the model, and on a CPU all of it stays in the cache. The most common
cases (no random bits, weights and gradient of one dtype on a CPU) have a quick step: a function prepared once for a
group's settings, with preallocated outputs, which gives the bits of the formula in `functional`.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kohya_ext.optim import blockwise, quick_random
from kohya_ext.optim.functional import (
    Constants,
    Rule,
    constants,
    found,
    needs_words,
    newest_share,
    step_full,
    step_half,
)
from kohya_ext.optim.quick_random import RandomBits
from kohya_ext.tensors.elements import DeviceCount, is_fake, on_device, scatter, slice_size, slices
from kohya_ext.tensors.rounding import element_indices, random_words, stream_key

# The dtypes of weights, gradient and accumulator, and their device: with a group's settings, all that decides the path.
Kind = tuple[torch.dtype, torch.dtype, torch.dtype, torch.device]
# One step in place of flat, contiguous weights; the others: the gradient, the accumulator, the factor of `found`.
QuickStep = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], None]

# Learning rates that a scheduler has left behind; a few stand for as many groups and kinds of tensors.
_MOST_KEPT = 64


class Scratch:
    """Reused buffers of one slice each."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, use: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer of one slice. Whoever asks for the same use gets the same memory."""
        key = (use, dtype, device)
        size = slice_size(device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return buffer


def _slices_of(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Start and length of each slice; of a tensor without contents the first alone, which takes what all of them do."""
    found = slices(tensor.numel(), slice_size(tensor.device))
    return itertools.islice(found, 1) if is_fake(tensor) else found


class SlicedStep:
    """Steps flat tensors in place."""

    def __init__(self, skips: SkipCount) -> None:
        self._scratch = Scratch()
        self._skips = skips
        self._prepared: dict[tuple[Rule, Kind], QuickStep | None] = {}

    def step(
        self,
        rule: Rule,
        weights: Tensor,
        gradient: Tensor,
        state: dict[str, Any],
        step: int,
        index: int,
        given: Tensor | None = None,
    ) -> None:
        """One step of a flat tensor.

        Args:
            rule: the settings of the group.
            weights: stepped in place.
            gradient: as long as they are.
            state: the accumulator and its company; under `factor` and `newest` (the share of this update in the
                momentum) a number, or one for each element.
            step: what random bits depend on, see `kohya_ext.tensors.rounding`.
            index: likewise.
            given: the random bits, where they depend on something else.
        """
        vt = state["vt"]  # a state may have more, from before a setting was switched off: the rule decides
        momentum = state.get("momentum") if rule.momentum else None
        factor = state.get("factor") if rule.auto_lr else None
        newest = state.get("newest", newest_share(rule, step))
        kind = (weights.dtype, gradient.dtype, vt.dtype, weights.device)
        quick = None if is_fake(weights) else self.quick(rule, kind)
        if quick is not None and (factor is None or not factor.dim()):
            quick(weights, gradient, vt, factor)
            return
        key = stream_key(rule.seed, step, index) if needs_words(rule, weights.dtype, vt.dtype) else None
        plain = constants(rule, vt.dtype, weights.device)
        for start, length in _slices_of(weights):
            end = start + length
            words: Tensor | RandomBits | None = None if key is None else RandomBits(key, start)
            if given is not None:
                words = given[start:end]
            numbers = found(plain, _part(factor, start, end), _part(newest, start, end))
            kept = None if momentum is None else momentum[start:end]
            scales = None
            if vt.dtype == torch.uint8:
                scales = state["scale"][start // blockwise.BLOCK : -(-end // blockwise.BLOCK)]
            self._step_slice(rule, numbers, weights[start:end], gradient[start:end], vt[start:end], words, kept, scales)

    def quick(self, rule: Rule, kind: Kind) -> QuickStep | None:
        """The quick step for tensors of this kind under these settings, made at the first call; None without one."""
        key = (rule, kind)
        if key not in self._prepared:
            if len(self._prepared) >= _MOST_KEPT:
                self._prepared.clear()
            self._prepared[key] = self._prepare(rule, kind)
        return self._prepared[key]

    def _prepare(self, rule: Rule, kind: Kind) -> QuickStep | None:
        weights, gradient, vt, device = kind
        if device.type != "cpu" or weights != gradient or needs_words(rule, weights, vt) or rule.momentum:
            return None
        if vt == torch.bfloat16:
            return self._quick_half(rule, device) if weights == torch.float32 else None
        return self._quick_full(rule, kind) if vt == weights else None

    def _step_slice(
        self,
        rule: Rule,
        numbers: Constants,
        weights: Tensor,
        gradient: Tensor,
        vt: Tensor,
        bits: Tensor | RandomBits | None,
        momentum: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> None:
        done = 0
        if bits is not None and momentum is None:
            done = quick_random.step_(self._scratch, rule, numbers, weights, gradient, vt, scales, bits)
            if done == weights.numel():
                return
            weights, gradient, vt = (flat[done:] for flat in (weights, gradient, vt))
            scales = None if scales is None else scales[done // blockwise.BLOCK :]
        words = _words_from(done, bits, weights)
        if scales is not None:
            self._skips.add(blockwise.step_(weights, gradient, vt, scales, numbers, rule, words, momentum))
            return
        formula = step_half if vt.dtype == torch.bfloat16 else step_full
        new = formula(weights, gradient, vt, numbers, rule, words, momentum)
        weights.copy_(new.weights)
        vt.copy_(new.state)
        if momentum is not None and new.momentum is not None:
            momentum.copy_(new.momentum)
        self._skips.add(new.usable)

    def _quick_half(self, rule: Rule, device: torch.device) -> QuickStep:
        """Weights in float32, accumulator in bfloat16."""
        plain = constants(rule, torch.bfloat16, device)
        decay, eps = rule.decay, rule.eps
        sign = 1.0 if rule.maximize else -1.0
        one_factor = rule.lr == 1  # the sign changes no rounding, so learning rate and scale are one factor
        wide_buffer, narrow_buffer = (
            self._scratch.take(name, dtype, device)
            for name, dtype in (("wide", torch.float32), ("narrow", torch.bfloat16))
        )
        scaled_buffer = wide_buffer if one_factor else self._scratch.take("scaled", torch.float32, device)
        size = slice_size(device)

        def step(weights: Tensor, gradient: Tensor, vt: Tensor, factor: Tensor | None) -> None:
            numbers = plain if factor is None else found(plain, factor)
            growth, scale = float(numbers.growth), float(numbers.scale)
            value = sign * (scale if one_factor else rule.lr)
            for own, newest, sums in _pieces(size, weights, gradient, vt):
                length = own.numel()
                wide, narrow = wide_buffer[:length], narrow_buffer[:length]
                torch.mul(newest, newest, out=wide)
                if not math.isfinite(wide.sum().item()):
                    self._step_slice(rule, numbers, own, newest, sums, None)
                    continue
                narrow.copy_(wide.mul_(growth))
                sums.add_(narrow)
                torch.sqrt(sums, out=narrow)
                wide.copy_(narrow.add_(eps))
                if decay != 1:
                    own.mul_(decay)
                if not one_factor:
                    newest = torch.mul(newest, scale, out=scaled_buffer[:length])
                own.addcdiv_(newest, wide, value=value)

        return step

    def _quick_full(self, rule: Rule, kind: Kind) -> QuickStep:
        """Weights and accumulator in float32, or both in float64."""
        plain = constants(rule, kind[2], kind[3])
        added, decay = float(plain.added), rule.decay
        value = -float(plain.negative_lr) if rule.maximize else float(plain.negative_lr)
        buffer = self._scratch.take("wide", kind[2], kind[3])
        scaled_buffer = self._scratch.take("scaled", kind[2], kind[3]) if rule.extended else buffer
        size = slice_size(kind[3])

        def step(weights: Tensor, gradient: Tensor, total: Tensor, factor: Tensor | None) -> None:
            numbers = plain if factor is None else found(plain, factor)
            growth, scale = float(numbers.growth), float(numbers.scale)
            for own, newest, sums in _pieces(size, weights, gradient, total):
                wide = torch.mul(newest, newest, out=buffer[: own.numel()])
                if not math.isfinite(wide.sum().item()):
                    self._step_slice(rule, numbers, own, newest, sums, None)
                    continue
                sums.add_(wide if growth == 1 else wide.mul_(growth))
                torch.sqrt(sums, out=wide).add_(added)
                if decay != 1:
                    own.mul_(decay)
                if scale != 1:
                    newest = torch.mul(newest, scale, out=scaled_buffer[: own.numel()])
                own.addcdiv_(newest, wide, value=value)

        return step


def _words_from(start: int, bits: Tensor | RandomBits | None, weights: Tensor) -> Tensor | None:
    """The random bits of the last elements of a slice, these weights, which begin there."""
    if isinstance(bits, RandomBits):
        return random_words(bits.key, element_indices(bits.start + start, weights.numel(), weights.device))
    return bits if bits is None else bits[start:]


def _part(value: Any, start: int, end: int) -> Any:
    """Of what may be one number for all elements."""
    return value[start:end] if isinstance(value, Tensor) and value.dim() else value


def _pieces(size: int, weights: Tensor, gradient: Tensor, vt: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """The three tensors a slice at a time. Squares are summed to find what is not finite: reading it costs no wait."""
    if weights.numel() <= size:
        return ((weights, gradient, vt),)
    # not `split`, whose views may not be written to in some versions of torch
    bounds = range(0, weights.numel(), size)
    return [(weights[at : at + size], gradient[at : at + size], vt[at : at + size]) for at in bounds]


class Job(NamedTuple):
    """One flat tensor to step, with everything this takes. place: its index among the parameters."""

    weights: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    step: int
    place: int


def step_many(sliced: SlicedStep, rule: Rule, jobs: list[Job]) -> None:
    """One step of each of the jobs, all under one rule. No two of them have weights in common.

    A LoRA has hundreds of tensors of a few thousand elements, where the number of calls costs more than the arithmetic.
    Tensors larger than half a slice gain nothing from being gathered, and are stepped by themselves.
    """
    kinds: dict[Kind, list[Job]] = defaultdict(list)
    for job in jobs:
        weights = job.weights
        kinds[weights.dtype, job.gradient.dtype, job.state["vt"].dtype, weights.device].append(job)
    for (weights_dtype, _, state_dtype, device), alike in kinds.items():
        most = slice_size(device)
        random = needs_words(rule, weights_dtype, state_dtype)
        largest = 0 if state_dtype == torch.uint8 else most // 2  # blocks of codes begin with their tensor
        batch: list[Job] = []
        size = 0
        for job in alike:
            elements = job.weights.numel()
            if elements > largest:
                sliced.step(rule, job.weights, job.gradient, job.state, job.step, job.place)
                continue
            if size + elements > most:
                _step_batch(sliced, rule, batch, random)
                batch, size = [], 0
            batch.append(job)
            size += elements
        if batch:
            _step_batch(sliced, rule, batch, random)


def _step_batch(sliced: SlicedStep, rule: Rule, jobs: list[Job], random: bool) -> None:
    all_weights = [job.weights for job in jobs]
    all_vt = [job.state["vt"] for job in jobs]
    weights, gradient, vt = torch.cat(all_weights), torch.cat([job.gradient for job in jobs]), torch.cat(all_vt)
    state: dict[str, Any] = {"vt": vt}
    if rule.auto_lr:
        state["factor"] = torch.cat([job.state["factor"].expand(job.weights.numel()) for job in jobs])
    if rule.momentum:
        state["momentum"] = torch.cat([job.state["momentum"] for job in jobs])
        state["newest"] = _newest_shares(rule, jobs, torch.float64 if vt.dtype == torch.float64 else torch.float32)
    sliced.step(rule, weights, gradient, state, 0, 0, _words_of(rule, jobs) if random else None)
    scatter(weights, all_weights)
    scatter(vt, all_vt)
    if rule.momentum:
        scatter(state["momentum"], [job.state["momentum"] for job in jobs])


def _newest_shares(rule: Rule, jobs: list[Job], dtype: torch.dtype) -> float | Tensor:
    """The share of the update in the momentum: one where all jobs are at the same step, else for each element."""
    shares = [newest_share(rule, job.step) for job in jobs]
    if len(set(shares)) == 1:
        return shares[0]
    numbers = on_device(torch.tensor(shares, dtype=dtype), jobs[0].weights.device)
    return torch.cat([number.expand(job.weights.numel()) for number, job in zip(numbers.unbind(), jobs, strict=True)])


def _words_of(rule: Rule, jobs: list[Job]) -> Tensor:
    """The random bits of gathered tensors: for each the same as by itself."""
    device = jobs[0].weights.device
    starts = itertools.accumulate((job.weights.numel() for job in jobs[:-1]), initial=0)
    keys = [stream_key(rule.seed, job.step, job.place) for job in jobs]
    numbers = on_device(torch.tensor([keys, list(starts)], dtype=torch.int32), device)
    key, start = (torch.cat([row[n].expand(job.weights.numel()) for n, job in enumerate(jobs)]) for row in numbers)
    return random_words(key, element_indices(0, key.numel(), device) - start)


class SkipCount:
    """Counts the gradient elements, on every device, that could not be used, and the steps in which none could.

    Adding to it makes no device wait.
    """

    def __init__(self) -> None:
        self._on_cpu = 0
        self._elsewhere = DeviceCount()
        self._before: int | Tensor = 0
        self._whole_steps: int | Tensor = 0

    def add(self, usable: Tensor) -> None:
        """Count the elements that are False."""
        if is_fake(usable):
            return
        if usable.device.type == "cpu":
            self._on_cpu += usable.numel() - int(usable.sum())
            return
        self.add_count(usable.numel() - usable.sum())

    def add_count(self, count: Tensor) -> None:
        """Count what a 0-dimensional integer tensor says, when it is ready."""
        self._elsewhere.add(count)

    def end_step(self, elements: int) -> None:
        """A step with this many gradient elements is over: note whether all of them were skipped."""
        total: int | Tensor = self._on_cpu
        for count in self._elsewhere.totals.values():
            total = total + count if isinstance(total, int) else total + count.to(total.device, non_blocking=True)
        self._whole_steps = self._whole_steps + (total - self._before == elements)
        self._before = total

    def whole_steps(self) -> int:
        """How many steps so far used no element at all. Waits for the device."""
        return int(self._whole_steps)

    def total(self) -> int:
        """How many elements so far. Waits for the device."""
        return self._on_cpu + self._elsewhere.total()
