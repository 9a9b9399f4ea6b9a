"""What one step of AdaCoor does to one tensor: its constants, and the formula as a pure function.

AdaCoor is Adagrad with learning rate lr * sqrt(eps) and epsilon sqrt(eps), written so that its published form keeps
the sum of squared gradients times eps in bfloat16. The three forms of the accumulator:

- 16 bits ("vt"): eps * sum(g**2) in bfloat16, with the roundings of the published optimizer, eps among them
- 32 and 64 bits: sum(g**2), exact eps
- 8 bits: sum(g**2) as one code an element and one scale a block, see `blockwise`

The formula here is the reference for all paths of one device: `compiled` compiles it, `sliced` runs it slice by slice
and has a faster equivalent for the commonest case.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kohya_ext.rounding import round_stochastically


@dataclass(frozen=True)
class Rule:
    """The settings of a parameter group, as numbers ready for use.

    lr multiplies the update. decay: what weights are multiplied with first (1 without weight decay).
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

    @property
    def rounded_eps(self) -> float:
        """eps as the published optimizer multiplies with it: in bfloat16."""
        return to_bfloat16(self.eps)

    @property
    def root_eps(self) -> float:
        return math.sqrt(self.eps)

    def added_eps(self, device: torch.device) -> float:
        """eps as this device adds it to a bfloat16 root: CPUs round it to bfloat16 first, GPUs do not."""
        return self.rounded_eps if device.type == "cpu" else self.eps


@dataclass(frozen=True)
class Stepped:
    """New weights and accumulator, and which elements have a gradient to be used at all (finite, square as well)."""

    weights: Tensor
    state: Tensor
    usable: Tensor


@dataclass(frozen=True)
class Constants:
    """The rule's numbers as the formula takes them: floats, or 0-dimensional tensors in compiled code.

    growth: factor of the squared gradient in the accumulator. scale: factor of the gradient. added: term beside the
    root. negative_lr, decay: see Rule.
    """

    growth: float | Tensor
    scale: float | Tensor
    added: float | Tensor
    negative_lr: float | Tensor
    decay: float | Tensor


def constants(rule: Rule, state_dtype: torch.dtype, device: torch.device) -> Constants:
    """The numbers for an accumulator in `state_dtype` (bfloat16: the published form) on `device`."""
    if state_dtype == torch.bfloat16:
        eps = rule.rounded_eps
        return Constants(eps * rule.vt_rate, eps, rule.added_eps(device), -rule.lr, rule.decay)
    return Constants(rule.vt_rate, 1.0, rule.root_eps, -rule.lr * rule.root_eps, rule.decay)


def step_half(
    weights: Tensor, gradient: Tensor, vt: Tensor, numbers: Constants, rule: Rule, words: Tensor | None
) -> Stepped:
    """One step with a bfloat16 accumulator. words: random bits (int32) for whatever is rounded stochastically."""
    exact, up = weights.to(torch.float32), _upcast(gradient, torch.float32, rule)
    square = up * up
    usable = square < math.inf  # false for NaN too
    growth = square * numbers.growth
    if rule.stochastic_state and words is not None:
        grown = round_stochastically(vt.to(torch.float32) + growth, words >> 16, torch.bfloat16)
    else:
        grown = (vt.to(torch.float32) + growth.to(torch.bfloat16).to(torch.float32)).to(torch.bfloat16)
    root = torch.sqrt(grown.to(torch.float32)).to(torch.bfloat16)
    denominator = (root.to(torch.float32) + numbers.added).to(torch.bfloat16).to(torch.float32)
    moved = _move(exact, up * numbers.scale, denominator, numbers, rule)
    return _finish(weights, vt, moved, grown, usable, rule, words)


def step_full(
    weights: Tensor, gradient: Tensor, total: Tensor, numbers: Constants, rule: Rule, words: Tensor | None
) -> Stepped:
    """One step with a float32 or float64 accumulator."""
    exact, up = weights.to(total.dtype), _upcast(gradient, total.dtype, rule)
    square = up * up
    usable = square < math.inf  # false for NaN too
    grown = total + square * numbers.growth
    moved = _move(exact, up, torch.sqrt(grown) + numbers.added, numbers, rule)
    return _finish(weights, total, moved, grown, usable, rule, words)


def rounds_weights_stochastically(rule: Rule, weights_dtype: torch.dtype) -> bool:
    """Whether new weights of this type are rounded at random."""
    return rule.stochastic_weights and weights_dtype in (torch.bfloat16, torch.float16)


def needs_words(rule: Rule, weights_dtype: torch.dtype, state_dtype: torch.dtype) -> bool:
    """Whether a step needs random bits."""
    coarse = state_dtype == torch.uint8 or (rule.stochastic_state and state_dtype == torch.bfloat16)
    return coarse or rounds_weights_stochastically(rule, weights_dtype)


@functools.lru_cache(maxsize=64)
def to_bfloat16(value: float) -> float:
    """The nearest bfloat16 value."""
    return float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16))


def round_weights(moved: Tensor, rule: Rule, dtype: torch.dtype, words: Tensor | None) -> Tensor:
    """New weights in the precision they are stored in."""
    if words is not None and rounds_weights_stochastically(rule, dtype):
        return round_stochastically(moved, words, dtype)
    return moved.to(dtype)


def _upcast(gradient: Tensor, dtype: torch.dtype, rule: Rule) -> Tensor:
    up = gradient.to(dtype)
    return -up if rule.maximize else up


def _move(weights: Tensor, numerator: Tensor, denominator: Tensor, numbers: Constants, rule: Rule) -> Tensor:
    decayed = weights if rule.decay == 1 else weights * numbers.decay
    # the order of operations of torch's addcdiv on a CPU
    return decayed + numbers.negative_lr * numerator / denominator


def _finish(
    weights: Tensor, state: Tensor, moved: Tensor, grown: Tensor, usable: Tensor, rule: Rule, words: Tensor | None
) -> Stepped:
    rounded = round_weights(moved, rule, weights.dtype, words)
    return Stepped(torch.where(usable, rounded, weights), torch.where(usable, grown, state), usable)
