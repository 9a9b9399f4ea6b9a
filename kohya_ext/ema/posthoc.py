"""Averages of another length, made after a run from those that it saved: their profiles, and the best mixture of them.

The profile of an average is the share that the weights after each real step have in it. A mixture of saved averages has
the mixture of their profiles, so the average that a run did not keep is approximated by the mixture whose profile comes
nearest to its own. The saved files may be EMAs of any schedule and of any length, and raw checkpoints.

Reference:
    Karras et al.: Analyzing and Improving the Training Dynamics of Diffusion Models, 2023, section 3.2 and appendix C,
    https://arxiv.org/abs/2312.02696.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kohya_ext.ema.schedules import Schedule

# Directions of the mixture that matter less than this are left alone: they would only add up rounding errors.
_NEGLIGIBLE = 1e-9
# The bound is so many times the largest of what the three kinds of runs give: real ones are none of them.
SAFETY = 3.0
# Of weights that hardly move all snapshots are rounded alike, and small coefficients gain nothing.
_HEEDED = 0.01
_ROUNDS = 300
_SLOWEST = 1e-6  # of the fastest pace, squared


@dataclass(frozen=True)
class Mixture:
    """What comes nearest to the average that is wanted.

    coefficients: of the sources, in their order; their sum is 1. error: expected distance from that average, as a part
    of the distance between it and the raw weights, where weights wander at random. bound: the same for the worst of
    three kinds of runs: weights that wander, that move steadily, and that jump about one place. rounding: what the
    rounding of the saved weights adds to both, in the same unit.
    """

    coefficients: tuple[float, ...]
    error: float
    bound: float
    rounding: float

    @property
    def worst(self) -> float:
        """The bound, and rounding that is twice what is expected."""
        return self.bound + 2 * self.rounding


def raw_profile(step: int, steps: int) -> Tensor:
    """The profile of the raw weights after `step` of `steps` steps: float64 of shape (steps + 1,)."""
    profile = torch.zeros(steps + 1, dtype=torch.float64)
    profile[step] = 1.0
    return profile


def ema_profile(schedule: Schedule, step: int, steps: int, *, update_every: int = 1, start_step: int = 0) -> Tensor:
    """The profile of an EMA after `step` of `steps` steps.

    Args:
        schedule: of the EMA.
        step: real steps it has seen.
        steps: real steps to the end of the profile, at least `step`.
        update_every: real steps an update.
        start_step: real steps before averaging began.

    Returns:
        float64 of shape (steps + 1,), sum 1; element 0 is the share of the start model, t that of the weights after t.

    Raises:
        ValueError: the EMA had not begun.
    """
    updates = (step - start_step) // update_every
    if updates < 1:
        raise ValueError(f"an EMA that starts at step {start_step} has no average at step {step}")
    weights = torch.tensor(
        [schedule.weight(number, update_every) for number in range(1, updates + 1)], dtype=torch.float64
    )
    # what later updates leave of each: 1 - w of all after it, as logarithms; a first weight of 1 has nothing before it
    left = torch.log1p(-weights.clamp(max=1 - 2**-53)).flip(0).cumsum(0).flip(0)
    after = torch.cat([left[1:], left.new_zeros(1)])
    profile = torch.zeros(steps + 1, dtype=torch.float64)
    profile[start_step + update_every : start_step + update_every * updates + 1 : update_every] = weights * after.exp()
    if not schedule.starts_fresh:
        profile[start_step] = math.exp(float(left[0]))
    return profile


def pace_of(profiles: Sequence[Tensor], distances: Sequence[float]) -> Tensor:
    """How fast the weights moved at each step, from how far apart a run's snapshots are.

    Between two snapshots the pace is taken as even. Found by the iteration of Richardson and Lucy, which keeps it
    positive.

    Args:
        profiles: of the snapshots in the order of their steps, at least two, of one shape (steps + 1,).
        distances: from each to the next, in any unit.

    Returns:
        float64 of shape (steps,), element t - 1 for step t; root mean square 1.
    """
    moves = torch.stack([_behind(after - before) for before, after in pairwise(profiles)])
    ends = sorted({_end(profile) for profile in profiles} | {len(moves[0])})
    table = torch.stack(
        [
            part.square().sum(dim=1)
            for part in moves.split([b - a for a, b in zip([0, *ends], ends, strict=False)], dim=1)
        ],
        dim=1,
    )
    seen = torch.tensor(distances, dtype=torch.float64).square()
    told = table.sum(dim=1) > 0
    table, seen = table[told], seen[told]
    squares = torch.ones(table.shape[1], dtype=torch.float64)
    if float(seen.sum()) > 0:
        share = table.sum(dim=0).clamp(min=1e-300)
        squares *= seen.sum() / table.sum()
        for _ in range(_ROUNDS):
            squares *= (table / (table @ squares).clamp(min=1e-300)[:, None] * seen[:, None]).sum(dim=0) / share
    squares = squares.clamp(min=_SLOWEST * float(squares.max()))
    steps = torch.cat([value.repeat(b - a) for value, a, b in zip(squares, [0, *ends], ends, strict=False)])
    return (steps / steps.mean()).sqrt()


def distance(one: Tensor, other: Tensor, pace: Tensor) -> float:
    """How far apart averages with these profiles are where weights wander at random at that pace."""
    return float((_behind(one - other) * pace).norm())


def mix(
    sources: Sequence[Tensor], wanted: Tensor, pace: Tensor, noise: float = 0.0, again: float | None = None
) -> Mixture:
    """The mixture of `sources` that comes nearest to `wanted`.

    Least squares, over the profiles and over their running sums: the former are what counts for weights that jump about
    one place, the latter for weights that wander. The coefficients' sum is held at 1, since weights are far larger than
    what a training changes of them.

    Args:
        sources: profiles of one shape (steps + 1,), at least one.
        wanted: profile of the same shape.
        pace: of the run, see `pace_of`.
        noise: rounding of the saved weights, as a part of the distance between the average and the raw weights; up to
            a point it keeps coefficients small.
        again: rounding of the new file, in the same unit; None where it is rounded as the saved weights are.

    Returns:
        The mixture and its errors.
    """
    raw = raw_profile(len(wanted) - 1, len(wanted) - 1)
    rows = torch.stack(list(sources), dim=1)
    jumping, wandering = (wanted - raw).norm(), distance(wanted, raw, pace)
    if not wandering:  # the raw weights themselves are wanted
        jumping, wandering = torch.ones_like(jumping), 1.0
    identity = min(noise, _HEEDED) * torch.eye(rows.shape[1], dtype=torch.float64)
    table = torch.cat([rows / jumping, _behind(rows) * pace[:, None] / wandering, identity])
    goal = torch.cat([wanted / jumping, _behind(wanted) * pace / wandering, identity.new_zeros(len(identity))])
    # the last coefficient is what the others leave of 1
    last, others = table[:, -1], table[:, :-1] - table[:, -1:]
    found = torch.linalg.lstsq(others, (goal - last)[:, None], rcond=_NEGLIGIBLE, driver="gelsd").solution[:, 0]
    coefficients = torch.cat([found, 1.0 - found.sum(dim=0, keepdim=True)])
    # of weights that hardly move all snapshots are rounded alike; the new file is rounded once more
    rounding = math.hypot(noise * max(1.0, float(coefficients.norm())), noise if again is None else again)
    paces = (pace, _slowing_down(pace, sources))
    return Mixture(tuple(coefficients.tolist()), *_errors(rows @ coefficients, wanted, paces), rounding)


def _errors(profile: Tensor, wanted: Tensor, paces: Sequence[Tensor]) -> tuple[float, float]:
    raw = raw_profile(len(wanted) - 1, len(wanted) - 1)
    off, whole = profile - wanted, wanted - raw
    wander = [_part(distance(profile, wanted, pace), distance(wanted, raw, pace)) for pace in paces]
    steady = [_part(*(abs(float(_behind(one) @ pace)) for one in (off, whole))) for pace in paces]
    jump = _part(float(off.norm()), float(whole.norm()))
    return wander[0], SAFETY * max(jump, *wander, *steady)


def _slowing_down(pace: Tensor, profiles: Sequence[Tensor]) -> Tensor:
    """The pace, but falling to 0 at the end, as cosine schedules do; between the last snapshots nobody has seen it."""
    last, *earlier = sorted({_end(profile) for profile in profiles}, reverse=True)
    length = last - (earlier[0] if earlier else 0)
    fall = torch.linspace(1, 0, length + 1, dtype=torch.float64)[:-1].square()
    return torch.cat([pace[: last - length], pace[last - length : last] * fall, pace[last:]])


def _end(profile: Tensor) -> int:
    return int(profile.nonzero().max())


def _part(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part > _NEGLIGIBLE else 0.0


def _behind(profile: Tensor) -> Tensor:
    """The share of what came at step t or later, for each t from 1 on: what a move at step t adds to the average."""
    return profile.flip(0).cumsum(0).flip(0)[1:]
