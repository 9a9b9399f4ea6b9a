"""The distance that a tensor's weights have moved so far: what `auto_lr` makes the learning rate of.

AdaCoor is the coordinate-wise DoWG with the distance frozen at its first guess, sqrt(eps). Here it is measured: the
root mean square, over the elements of a tensor, of the sum of its updates. It only grows, and what is kept is its
square by eps, the factor of both the gradient and its square in a step (`functional.found`).

Summed are the updates as they were meant, not as bfloat16 weights took them: stochastic rounding moves such weights at
random by far more than the updates do, and a distance that counted it would grow without end. Weight decay does not
count either, for the same reason, nor what a rate above 1 adds: where gradients are only noise, the distance that is
counted as it is at 1 grows slower and slower, and any larger one would outrun the sum.

A sample is enough: runs of 16 elements (a cache line of float32), one by a hash out of every 128, take 1/32 byte a
weight. Tensors of up to 4096 elements are summed as a whole, larger ones never with fewer than that.

Reference:
    Khaled, Mishchenko, Jin: DoWG Unleashed, 2023, https://arxiv.org/abs/2305.16284; Ivgi, Hinder, Carmon: DoG is SGD's
    Best Friend, 2023, https://arxiv.org/abs/2302.12022.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kohya_ext.optim import blockwise
from kohya_ext.optim.functional import Rule, constants, found, half_divisor, usable_part
from kohya_ext.tensors.elements import kept, local
from kohya_ext.tensors.rounding import element_indices, random_words, stream_key

RUN = 16
EVERY = 128
EXACT = 4096
# Growth of the squared distance in one step, at most. A step at lr 1 can double a distance, so without a bound it would
# be 4, and more at a larger lr. At 2, a hundredfold distance takes 14 steps, and a burst of large updates does no harm.
FASTEST = 2.0


def fresh(weights: Tensor) -> dict[str, Tensor]:
    """The state of a parameter that has not moved yet: `factor`, the squared distance by eps, and `moved`."""
    weights = local(weights)
    dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
    moved = torch.zeros(sampled(weights.numel()), dtype=dtype, device=weights.device)
    return {"moved": moved, "factor": torch.ones((), dtype=dtype, device=weights.device)}


def sampled(numel: int) -> int:
    """How many elements of a tensor are summed."""
    return numel if numel <= EXACT else numel // RUN // _strata(numel) * RUN


def note(rule: Rule, gradient: Tensor, state: Mapping[str, Tensor]) -> None:
    """Add the step that has just been made to the distance, in place and without waiting for the device.

    Args:
        rule: of the step.
        gradient: flat, in the order of the accumulator.
        state: of the parameter after the step, flat.
    """
    moved, factor = state["moved"], state["factor"]
    up, usable = usable_part(_sample(gradient), moved.dtype, rule)
    update = _update(rule, up, usable, state)
    moved.sub_(update if rule.lr >= 1 else update * rule.lr)
    # by rows first: the whole at once would be summed by as many threads as there are, each in its own order
    squares = moved.square()
    whole = squares.numel() // RUN * RUN
    total = squares[:whole].view(-1, RUN).sum(dim=1).sum() + squares[whole:].sum()
    now = total / (moved.numel() * rule.eps)
    # a distance that is not finite (weights that have diverged) is none, and a step that was skipped changes nothing
    now = torch.where(torch.isfinite(now) & usable.any(), now, factor)
    factor.copy_(torch.maximum(factor, torch.minimum(now, factor * FASTEST)))


def _update(rule: Rule, up: Tensor, usable: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The update of the sampled elements, before the learning rate."""
    vt = state["vt"]
    if rule.momentum:
        return torch.where(usable, _sample(state["momentum"]).to(up.dtype), 0.0)
    numbers = found(constants(rule, vt.dtype, vt.device), state["factor"])
    if vt.dtype == torch.bfloat16:
        return up * numbers.scale / half_divisor(_sample(vt).to(up.dtype), numbers)
    sums = _sample_codes(vt, state["scale"]) if vt.dtype == torch.uint8 else _sample(vt)
    return up * numbers.scale / (torch.sqrt(sums) + numbers.added)


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
    return min(EVERY, numel // EXACT)


@kept
def _runs(numel: int, device: torch.device) -> Tensor:
    """The numbers of the runs that are sampled of a flat tensor: one of each stratum, by a hash."""
    each = _strata(numel)
    strata = element_indices(0, numel // RUN // each, device)
    words = random_words(stream_key(0, 0, 0), strata)
    return strata.to(torch.int64) * each + (words.to(torch.int64) & 0xFFFFFFFF) % each
