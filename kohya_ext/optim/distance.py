"""The distance that a tensor's weights have moved so far: what `auto_lr` makes the learning rate of.

AdaCoor is the coordinate-wise DoWG with the distance frozen at its first guess, sqrt(eps). Here it is measured: over
the elements of a tensor, the mean square of the sum of their updates, less half the mean sum of the squares of the
updates. That sum is how far, squared, a random walk of these steps goes: where gradients are only noise, it is what
has been measured, and updates that agree for t steps go t times as far. How far a walk really goes is chance, the more
so the fewer the elements are: twice the variance of that is subtracted, too. The distance only grows, and what is kept
is its square by eps, the factor of both the gradient and its square in a step (`functional.found`).

Summed are the updates as they were meant, not as bfloat16 weights took them: stochastic rounding moves such weights at
random by far more than the updates do. Weight decay does not count either, nor what a rate above 1 adds. With momentum,
which spreads each gradient over several updates, a walk goes (1 + momentum) / (1 - momentum) times as far, squared.

A sample is enough: runs of 16 elements (a cache line of float32), one by a hash out of every 128, take 1/32 byte a
weight. Tensors of up to 4096 elements are summed as a whole, larger ones never with fewer than that; and 8,192 are
enough for any, so that from 1 million elements on runs lie further apart.

Reference:
    Khaled, Mishchenko, Jin: DoWG Unleashed, 2023, https://arxiv.org/abs/2305.16284; Ivgi, Hinder, Carmon: DoG is SGD's
    Best Friend, 2023, https://arxiv.org/abs/2302.12022.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim import blockwise
from kohya_ext.optim.functional import Rule, constants, found, half_divisor, newest_share, usable_part
from kohya_ext.optim.kernel_arguments import vector
from kohya_ext.tensors.elements import kept, local, scatter
from kohya_ext.tensors.rounding import element_indices, random_words, stream_key

RUN = 16
EVERY = 128
EXACT = 4096
ENOUGH = 8192
# Growth of the squared distance in one step, at most. A step at lr 1 can double a distance, so without a bound it would
# be 4, and more at a larger lr. At 2, a hundredfold distance takes 14 steps, and a burst of large updates does no harm.
FASTEST = 2.0
# Share of the random walk that is subtracted. In pure noise the squared distance grows with the number of steps t as
# t**((1 - share) / share): as exp(sqrt(2 * t)) if nothing is subtracted, not at all if everything is. With half of it
# steps keep their length there, and a distance is found even where a gradient is mostly noise (a LoRA at batch size 1).
OF_NOISE = 0.5
# What is subtracted as well, in variances of a walk's mean square, which is 2 / n of the walk for n elements. As the
# largest distance so far is kept, luck alone would let that of a few elements grow without end.
OF_LUCK = 2.0
# Elements gathered into one computation, at most: what it takes then fits the cache, whatever the size of the model.
_GATHERED = 1 << 16

# The gradient, and the state after the step, its number included.
Step = tuple[Tensor, Mapping[str, Any]]


def fresh(weights: Tensor) -> dict[str, Tensor]:
    """The state of a parameter that has not moved yet.

    `factor`: the squared distance by eps. `moved`: the sum of the updates of each element of the sample. `walk`: the
    mean, over the sample, of the sum of their squares.
    """
    weights = local(weights)
    dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
    moved = torch.zeros(sampled(weights.numel()), dtype=dtype, device=weights.device)
    one = torch.ones((), dtype=dtype, device=weights.device)
    return {"moved": moved, "walk": torch.zeros_like(one), "factor": one}


def sampled(numel: int) -> int:
    """How many elements of a tensor are summed."""
    return numel if numel <= EXACT else numel // RUN // _strata(numel) * RUN


def note(rule: Rule, steps: Sequence[Step]) -> None:
    """Add steps that have just been made to the distances, in place and without waiting for the device.

    Many small tensors are gathered, in pieces of bounded size; the bits are those of each by itself.

    Args:
        rule: of all these steps.
        steps: (gradient, state after the step) of each tensor, flat, in the order of the accumulator.
    """
    alike: dict[tuple[torch.dtype, torch.dtype, torch.device], list[Step]] = defaultdict(list)
    for gradient, state in steps:
        alike[gradient.dtype, state["vt"].dtype, gradient.device].append((gradient, state))
    for kind in alike.values():
        batch: list[Step] = []
        size = 0
        for step in kind:
            numel = step[1]["moved"].numel()
            if batch and size + numel > _GATHERED:
                _note_batch(rule, batch)
                batch, size = [], 0
            batch.append(step)
            size += numel
        _note_batch(rule, batch)


def _note_batch(rule: Rule, steps: Sequence[Step]) -> None:
    moved = [state["moved"] for _, state in steps]
    sizes = [own.numel() for own in moved]
    dtype = moved[0].dtype
    up, usable = usable_part(_joined([_sample(gradient) for gradient, _ in steps]), dtype, rule)
    factors = torch.stack([state["factor"] for _, state in steps])
    update = _update(rule, up, usable, steps, _each(factors, sizes))
    if rule.lr < 1:
        update = update * rule.lr
    now_moved = _joined(moved) - update
    scatter(now_moved, moved)
    longer = _mean_squares(update, sizes) * _spread_by_momentum(rule, steps, dtype)
    walk = torch.stack([state["walk"] for _, state in steps]) + longer
    shares = vector(tuple(map(_of_walk, sizes)), dtype, walk.device)
    now = (_mean_squares(now_moved, sizes) - shares * walk) / rule.eps
    # a distance that is not finite (weights that have diverged) is none, and a step that was skipped changes nothing
    now = torch.where(torch.isfinite(now) & (longer > 0), now, factors)
    grown = torch.maximum(factors, torch.minimum(now, factors * FASTEST))
    for (_, state), so_far, factor in zip(steps, walk.unbind(), grown.unbind(), strict=True):
        state["walk"].copy_(so_far)
        state["factor"].copy_(factor)


def _update(rule: Rule, up: Tensor, usable: Tensor, steps: Sequence[Step], factors: Tensor) -> Tensor:
    """The update of the sampled elements, before the learning rate."""
    if rule.momentum:
        return torch.where(usable, _joined([_sample(state["momentum"]) for _, state in steps]).to(up.dtype), 0.0)
    first = steps[0][1]["vt"]
    numbers = found(constants(rule, first.dtype, first.device), factors)
    if first.dtype == torch.uint8:
        sums = _joined([_sample_codes(state["vt"], state["scale"]) for _, state in steps])
    else:
        sums = _joined([_sample(state["vt"]) for _, state in steps])
    if first.dtype == torch.bfloat16:
        return up * numbers.scale / half_divisor(sums.to(up.dtype), numbers)
    return up * numbers.scale / (torch.sqrt(sums) + numbers.added)


def _spread_by_momentum(rule: Rule, steps: Sequence[Step], dtype: torch.dtype) -> float | Tensor:
    """How many times as far, squared, noise has carried each tensor than its updates say."""
    newest = [newest_share(rule, state["step"]) for _, state in steps]
    times = tuple((2 - share) / share for share in newest)
    return times[0] if len(set(times)) == 1 else vector(times, dtype, steps[0][1]["factor"].device)


def _of_walk(size: int) -> float:
    """The share of a random walk of so many elements that is subtracted from the square of their distance."""
    return OF_NOISE + OF_LUCK * 2 / max(size, 1)


def _mean_squares(moved: Tensor, sizes: list[int]) -> Tensor:
    """Of each of the tensors that were joined."""
    # by rows first: the whole at once would be summed by as many threads as there are, each in its own order
    squares = moved.square()
    if any(size % RUN for size in sizes):
        totals = [_sum_with_end(part) for part in squares.split(sizes)]
    else:
        rows = squares.view(-1, RUN).sum(dim=1)
        totals = [part.sum() for part in rows.split([size // RUN for size in sizes])]
    return torch.stack(totals) / vector(tuple(map(float, sizes)), moved.dtype, moved.device)


def _sum_with_end(squares: Tensor) -> Tensor:
    whole = squares.numel() // RUN * RUN
    total = squares[:whole].view(-1, RUN).sum(dim=1).sum()
    return total + squares[whole:].sum() if whole < squares.numel() else total


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _each(factors: Tensor, sizes: list[int]) -> Tensor:
    """The factor of each element; of one tensor, one for all."""
    if len(sizes) == 1:
        return factors
    return torch.cat([factor.expand(size) for factor, size in zip(factors.unbind(), sizes, strict=True)])


def _sample(flat: Tensor) -> Tensor:
    if flat.numel() <= EXACT:
        return flat
    runs = _runs(flat.numel(), flat.device)
    return flat[: flat.numel() // RUN * RUN].view(-1, RUN).index_select(0, runs).view(-1)


def _sample_codes(codes: Tensor, scales: Tensor) -> Tensor:
    if codes.numel() <= EXACT:
        return blockwise.decode(codes, scales)
    blocks = _runs(codes.numel(), codes.device) // (blockwise.BLOCK // RUN)
    values = blockwise.code_book(codes.device).index_select(0, _sample(codes).to(torch.int32))
    return (values.view(-1, RUN) * scales.index_select(0, blocks)[:, None]).view(-1)


def _strata(numel: int) -> int:
    """Of how many runs one is sampled."""
    return max(min(EVERY, numel // EXACT), numel // ENOUGH)


@kept
def _runs(numel: int, device: torch.device) -> Tensor:
    """The numbers of the runs that are sampled of a flat tensor: one of each stratum, by a hash."""
    each = _strata(numel)
    strata = element_indices(0, numel // RUN // each, device)
    words = random_words(stream_key(0, 0, 0), strata)
    return strata.to(torch.int64) * each + (words.to(torch.int64) & 0xFFFFFFFF) % each
