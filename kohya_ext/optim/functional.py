"""What one step of AdaCoor does to one tensor: its constants, and the formula as a pure function.

AdaCoor is Adagrad with learning rate lr * sqrt(eps) and epsilon sqrt(eps), written so that its published form keeps
the sum of squared gradients times eps in bfloat16. The three forms of the accumulator:

- 16 bits ("vt"): eps * sum(g**2) in bfloat16, with the roundings of the published optimizer, eps among them
- 32 and 64 bits: sum(g**2), exact eps
- 8 bits: sum(g**2) as one code an element and one scale a block, see `blockwise`

The formula here is the reference for all paths of one device: `compiled` compiles it, `eager` runs it slice by slice
and has a faster equivalent for the commonest case.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kohya_ext.tensors.rounding import as_bfloat16, as_bfloat16_at_random, more_words, round_stochastically

# With `auto_lr`, the gradient that the term next to the root stands for, whatever the first guess: one well below it is
# plain SGD, and its distance found the later the smaller it is. As Adam has it; sqrt(eps) would be large as a gradient.
LEAST_GRADIENT = 1e-8
# Steps after which the share of the momentum is a half, where the rule's is more; it is 0.9 after 540.
BUILD_UP = 60


@dataclass(frozen=True)
class Rule:
    """The settings of a parameter group, as numbers ready for use.

    lr multiplies the update. decay: what weights are multiplied with first (1 without weight decay). momentum: the
    share of it that each step keeps, 0 for none.
    """

    lr: float
    eps: float
    decay: float
    vt_rate: float
    maximize: bool
    state_bits: int
    stochastic_state: bool
    stochastic_weights: bool
    seed: int
    auto_lr: bool = False
    momentum: float = 0.0

    @property
    def extended(self) -> bool:
        """Whether a step does more than that of the published optimizer."""
        return self.auto_lr or self.momentum > 0

    @property
    def rounded_eps(self) -> float:
        """eps as the published optimizer multiplies with it: in bfloat16."""
        return to_bfloat16(self.eps)

    @property
    def root_eps(self) -> float:
        """The epsilon of the equivalent Adagrad, and the factor of its learning rate."""
        return math.sqrt(self.eps)

    @property
    def least_gradient(self) -> float:
        """The gradient that the term next to the root stands for."""
        return LEAST_GRADIENT if self.auto_lr else self.root_eps

    def added_eps(self, device: torch.device) -> float:
        """What this device adds to a bfloat16 root: CPUs round it to bfloat16 first, GPUs do not."""
        added = LEAST_GRADIENT * self.root_eps if self.auto_lr else self.eps
        return to_bfloat16(added) if device.type == "cpu" else added


@dataclass(frozen=True)
class Stepped:
    """New weights and accumulator, and which elements have a gradient to be used at all (finite, square as well)."""

    weights: Tensor
    state: Tensor
    usable: Tensor
    momentum: Tensor | None = None


@dataclass(frozen=True)
class Constants:
    """The rule's numbers as the formula takes them: floats, or 0-dimensional tensors in compiled code.

    growth: factor of the squared gradient in the accumulator. scale: factor of the gradient; the 32- and 64-bit forms
    of the plain rule have it in negative_lr. added: term next to the root. negative_lr, decay: see Rule. newest: share
    of this update in the momentum.
    """

    growth: float | Tensor
    scale: float | Tensor
    added: float | Tensor
    negative_lr: float | Tensor
    decay: float | Tensor
    newest: float | Tensor = 1.0


def constants(rule: Rule, state_dtype: torch.dtype, device: torch.device) -> Constants:
    """The numbers for an accumulator in `state_dtype` (bfloat16: the published form) on `device`."""
    if state_dtype == torch.bfloat16:
        eps = rule.rounded_eps
        return Constants(eps * rule.vt_rate, eps, rule.added_eps(device), -rule.lr, rule.decay)
    if rule.extended:
        return Constants(rule.vt_rate, rule.root_eps, rule.least_gradient, -rule.lr, rule.decay)
    return Constants(rule.vt_rate, 1.0, rule.root_eps, -rule.lr * rule.root_eps, rule.decay)


def found(numbers: Constants, factor: Tensor | None, newest: float | Tensor = 1.0) -> Constants:
    """The numbers of one step.

    Args:
        numbers: those of the rule.
        factor: the square of the distance found by eps, for all elements or each; None for 1.
        newest: share of this update in the momentum, likewise; see `newest_share`.
    """
    if factor is not None:
        numbers = replace(numbers, growth=factor * numbers.growth, scale=factor * numbers.scale)
    return numbers if isinstance(newest, float) and newest == 1 else replace(numbers, newest=newest)


def newest_share(rule: Rule, step: int) -> float:
    """The share that an update has in the momentum at a step, counted from 1: 1 without any.

    The momentum's own share grows from step to step until it is the rule's. Were it the rule's from the start, the
    distance of `auto_lr` would be found late: each update would count for a tenth at first, and distances double.
    """
    return 1.0 - min(rule.momentum, step / (step + BUILD_UP)) if rule.momentum else 1.0


def step_half(
    weights: Tensor,
    gradient: Tensor,
    vt: Tensor,
    numbers: Constants,
    rule: Rule,
    words: Tensor | None,
    momentum: Tensor | None = None,
    rounded: Callable[[Tensor], Tensor] = as_bfloat16,
) -> Stepped:
    """One step with a bfloat16 accumulator.

    Args:
        weights: in any floating dtype but float64.
        gradient: of the same shape; the arithmetic is in float32.
        vt: eps * sum(g**2) in bfloat16.
        numbers: of `rule`, see `constants`.
        rule: the settings of the group.
        words: int32 random bits, one an element, for whatever is rounded stochastically; None where nothing is. The
            upper 16 bits round the accumulator, the lower ones the weights.
        momentum: the mean of the latest updates before `lr`; None where the rule has none.
        rounded: rounds float32 to the nearest bfloat16 and leaves it in float32; the ways of `rounding` have one
            result.
    """
    up, usable = usable_part(gradient, torch.float32, rule)
    growth = up * up * numbers.growth
    if rule.stochastic_state and words is not None:
        grown = as_bfloat16_at_random(vt.to(torch.float32) + growth, words >> 16)
    else:
        grown = rounded(vt.to(torch.float32) + rounded(growth))
    divisor = half_divisor(grown, numbers, rounded)
    kept = None if momentum is None else averaged(momentum, up * numbers.scale / divisor, numbers, usable, words)
    moved = move(weights.to(torch.float32), up * numbers.scale, divisor, kept, numbers, rule, usable)
    return Stepped(round_weights(moved, rule, weights.dtype, words), grown.to(torch.bfloat16), usable, kept)


def step_full(
    weights: Tensor,
    gradient: Tensor,
    total: Tensor,
    numbers: Constants,
    rule: Rule,
    words: Tensor | None,
    momentum: Tensor | None = None,
) -> Stepped:
    """One step with a float32 or float64 accumulator."""
    up, usable = usable_part(gradient, total.dtype, rule)
    grown = total + up * up * numbers.growth
    numerator = up * numbers.scale if rule.extended else up
    divisor = torch.sqrt(grown) + numbers.added
    kept = None if momentum is None else averaged(momentum, numerator / divisor, numbers, usable, words)
    moved = move(weights.to(total.dtype), numerator, divisor, kept, numbers, rule, usable)
    return Stepped(round_weights(moved, rule, weights.dtype, words), grown, usable, kept)


def half_divisor(grown: Tensor, numbers: Constants, rounded: Callable[[Tensor], Tensor] = as_bfloat16) -> Tensor:
    """What a gradient is divided by, from a bfloat16 accumulator that is given in float32."""
    return rounded(rounded(torch.sqrt(grown)) + numbers.added)


def averaged(momentum: Tensor, update: Tensor, numbers: Constants, usable: Tensor, words: Tensor | None) -> Tensor:
    """The momentum after one more update, as it is stored; unusable elements keep theirs."""
    before = momentum.to(update.dtype)
    after = before + (update - before) * numbers.newest
    after = torch.where(usable, after, before)
    if momentum.dtype != torch.bfloat16 or words is None:
        return after.to(momentum.dtype)
    return round_stochastically(after, more_words(words), torch.bfloat16)


def momentum_dtype(state_dtype: torch.dtype) -> torch.dtype:
    """The type of the momentum next to an accumulator of this type."""
    return torch.bfloat16 if state_dtype == torch.uint8 else state_dtype


def rounds_weights_stochastically(rule: Rule, weights_dtype: torch.dtype) -> bool:
    """Whether new weights of this type are rounded at random."""
    return rule.stochastic_weights and weights_dtype in (torch.bfloat16, torch.float16)


def needs_words(rule: Rule, weights_dtype: torch.dtype, state_dtype: torch.dtype) -> bool:
    """Whether a step needs random bits."""
    coarse = state_dtype == torch.uint8 or (rule.stochastic_state and state_dtype == torch.bfloat16)
    coarse = coarse or (rule.momentum > 0 and momentum_dtype(state_dtype) == torch.bfloat16)
    return coarse or rounds_weights_stochastically(rule, weights_dtype)


def needs_only_upper_half(rule: Rule, weights_dtype: torch.dtype) -> bool:
    """Whether the lower 16 random bits are not used: they round weights, and those of a momentum are made of them."""
    return not rule.momentum and not rounds_weights_stochastically(rule, weights_dtype)


@functools.lru_cache(maxsize=64)
def to_bfloat16(value: float) -> float:
    """The nearest bfloat16 value."""
    return float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16))


def round_weights(moved: Tensor, rule: Rule, dtype: torch.dtype, words: Tensor | None) -> Tensor:
    """New weights in the precision they are stored in."""
    if words is not None and rounds_weights_stochastically(rule, dtype):
        return round_stochastically(moved, words, dtype)
    return moved.to(dtype)


def usable_part(gradient: Tensor, dtype: torch.dtype, rule: Rule) -> tuple[Tensor, Tensor]:
    """The gradient to step by, and where it could be used. Elsewhere it is 0, which moves neither weight nor state."""
    up = gradient.to(dtype)
    up = -up if rule.maximize else up
    usable = up * up < math.inf  # false for NaN too
    return torch.where(usable, up, 0.0), usable


def move(
    weights: Tensor,
    numerator: Tensor,
    divisor: Tensor,
    kept: Tensor | None,
    numbers: Constants,
    rule: Rule,
    usable: Tensor,
) -> Tensor:
    """New weights before they are rounded. kept: the momentum after this step, where there is any."""
    decayed = weights if rule.decay == 1 else torch.where(usable, weights * numbers.decay, weights)
    if kept is not None:
        return torch.where(usable, decayed + numbers.negative_lr * kept.to(weights.dtype), weights)
    # the order of operations of torch's addcdiv on a CPU
    return decayed + numbers.negative_lr * numerator / divisor
