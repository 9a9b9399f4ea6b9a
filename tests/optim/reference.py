"""Slow, obvious twins of AdaCoor that the tests compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim import AdaCoor, blockwise, distance
from kohya_ext.optim.accumulator import fresh, fresh_momentum
from kohya_ext.optim.functional import constants, found, needs_words, newest_share, step_full, step_half
from kohya_ext.optim.settings import rule_of
from kohya_ext.tensors.rounding import element_indices, random_words, stream_key

DEFAULTS = AdaCoor([torch.zeros(1)]).param_groups[0]


def published_step(weights: Tensor, gradient: Tensor, vt: Tensor, eps: float = 1e-8) -> None:
    """One step of the published optimizer in place: float32 weights, bfloat16 `vt`, the formula run eagerly."""
    rounded = torch.tensor(eps).to(torch.bfloat16).to(torch.float32)
    vt.add_((rounded * gradient**2).to(torch.bfloat16))
    denominator = vt.sqrt().add_(eps).to(torch.float32)
    weights.addcdiv_(rounded * gradient, denominator, value=-1)


class Exact:
    """AdaCoor in float64, from its definition as Adagrad with learning rate lr * sqrt(eps) and epsilon sqrt(eps)."""

    def __init__(self, weights: Tensor, eps: float = 1e-8, vt_rate: float = 1.0, weight_decay: float = 0.0) -> None:
        self.weights = weights.double().clone()
        self.total = torch.zeros_like(self.weights)
        self.eps, self.vt_rate, self.weight_decay = eps, vt_rate, weight_decay

    def step(self, gradient: Tensor, lr: float = 1.0) -> None:
        """One step with a gradient of any precision."""
        gradient = gradient.double()
        self.total += self.vt_rate * gradient**2
        rate = lr * self.eps**0.5
        self.weights *= 1 - rate * self.weight_decay
        self.weights -= rate * gradient / (self.total.sqrt() + self.eps**0.5)


class Found:
    """`auto_lr` and `momentum` in float64, from their definition: coordinate-wise DoWG, one distance a tensor.

    All elements count for the distance, as AdaCoor has it for tensors of up to 4096.
    """

    def __init__(self, weights: Tensor, eps: float = 1e-8, momentum: float = 0.0, **settings: float) -> None:
        self.weights = weights.double().clone()
        self.total, self.moved, self.mean = (torch.zeros_like(self.weights) for _ in range(3))
        self.eps, self.momentum = eps, momentum
        self.vt_rate, self.weight_decay = settings.get("vt_rate", 1.0), settings.get("weight_decay", 0.0)
        self.square = eps  # of the distance
        self.walk = 0.0  # of noise alone, squared
        self.steps = 0

    def step(self, gradient: Tensor, lr: float = 1.0) -> None:
        """One step with a gradient of any precision, none of it unusable."""
        gradient = gradient.double()
        self.total += self.vt_rate * self.square * gradient**2
        update = self.square * gradient / (self.total.sqrt() + 1e-8 * self.eps**0.5)
        self.steps += 1
        share = min(self.momentum, self.steps / (self.steps + 60))
        self.mean = share * self.mean + (1 - share) * update
        self.weights *= 1 - lr * self.eps**0.5 * self.weight_decay
        self.weights -= lr * self.mean
        counted = min(lr, 1.0) * self.mean
        self.moved -= counted
        self.walk += float(counted.square().mean()) * (1 + share) / (1 - share)
        of_noise = self.walk * (1 / 2 + 4 / self.moved.numel())
        self.square = max(self.square, min(2 * self.square, float(self.moved.square().mean()) - of_noise))


def decades(shape: tuple[int, ...], generator: torch.Generator, low: float = -9, high: float = 3) -> Tensor:
    """Random gradients whose magnitudes spread evenly over 12 powers of ten."""
    exponent = low + (high - low) * torch.rand(shape, generator=generator)
    return torch.randn(shape, generator=generator) * 10**exponent


# What has one element for each weight, codes of 8 bits as well.
SHAPED = {"vt", "momentum"}


class Formula:
    """AdaCoor as `optim.rule` states it, on flat copies: no slices, no gathering, no view of anybody's memory."""

    def __init__(self, weights: Tensor, **settings: Any) -> None:
        self.weights = weights.detach().clone(memory_format=torch.contiguous_format)
        self._rule = rule_of({**DEFAULTS, **settings})
        self._steps = 0
        self.skipped = 0
        self.state = {key: value.flatten() for key, value in fresh(self.weights, self._rule.state_bits).items()}
        if self._rule.auto_lr:
            self.state.update(distance.fresh(self.weights))
        if self._rule.momentum:
            self.state["momentum"] = fresh_momentum(self.weights, self._rule.state_bits).flatten()

    def step(self, gradient: Tensor, index: int, order: Sequence[int]) -> None:
        """One step of parameter `index`. order: of the dimensions, in which elements count for random bits."""
        self._steps += 1
        if not self.weights.numel():
            return
        flat, newest = (_flat_copy(tensor, order) for tensor in (self.weights, gradient))
        words = random_words(
            stream_key(self._rule.seed, self._steps, index), element_indices(0, flat.numel(), flat.device)
        )
        own = {name: _flat_copy(self._shaped(value), order) for name, value in self.state.items() if name in SHAPED}
        own = {**self.state, **own, "step": self._steps}
        vt, kept = own["vt"], own.get("momentum")
        plain = constants(self._rule, vt.dtype, flat.device)
        numbers = found(plain, own.get("factor"), newest_share(self._rule, self._steps))
        if not needs_words(self._rule, flat.dtype, vt.dtype):
            words = None
        if vt.dtype == torch.uint8:
            usable = blockwise.step_(flat, newest, vt, own["scale"], numbers, self._rule, words, kept)
        else:
            formula = step_half if vt.dtype == torch.bfloat16 else step_full
            new = formula(flat, newest, vt, numbers, self._rule, words, kept)
            flat, usable, own["vt"] = new.weights, new.usable, new.state
            if new.momentum is not None:
                own["momentum"] = new.momentum
        if self._rule.auto_lr:
            distance.note(self._rule, [(newest, own)])
        for name in SHAPED & own.keys():
            _unfold(self._shaped(self.state[name]), own[name], order)
        _unfold(self.weights, flat, order)
        self.skipped += int((~usable).sum())

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.view(self.weights.shape)


def _flat_copy(tensor: Tensor, order: Sequence[int]) -> Tensor:
    return tensor.permute(tuple(order)).reshape(-1).clone(memory_format=torch.contiguous_format)


def _unfold(target: Tensor, flat: Tensor, order: Sequence[int]) -> None:
    permuted = target.permute(tuple(order))
    permuted.copy_(flat.view(permuted.shape))
