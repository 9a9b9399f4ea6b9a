"""How much of what a fine-tune changed is in a LoRA, and what is not: squared Frobenius norms, which add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kohya_ext.lora import encoders, rest, workers
from kohya_ext.lora.assemble import Written
from kohya_ext.lora.checkpoint import Checkpoint, Weight, only_rounding

RESIDUAL = "residual blocks and samplers (convolutions, time projections)"
CONV_FLAG, ENCODER_FLAG = "--conv-rank N", "--text-encoders all"
_SLICE = 1 << 22  # elements that are subtracted at a time


@dataclass(frozen=True)
class ChangedKind:
    """What changed outside of the LoRA's modules. energy: squared norm. flag: what takes it in; None where nothing can.

    tensors: how many differ.
    """

    kind: str
    energy: float
    tensors: int
    flag: str | None = None


@dataclass(frozen=True)
class ModelChange:
    """The whole difference of two models. inside: squared norm of the modules that are extracted.

    outside: largest first. uncompared: tensors that only one model has under this name and shape, or that contain NaN.
    """

    inside: float
    outside: tuple[ChangedKind, ...]
    uncompared: int

    @property
    def total(self) -> float:
        """Squared norm of all that was compared."""
        return self.inside + math.fsum(part.energy for part in self.outside)

    def kept(self, written: Written) -> float:
        """The part of the whole change that the file reproduces: 1 minus the squared error of the whole model."""
        return (self.inside - self._missing(written)) / self.total

    def lost(self, written: Written) -> float:
        """The part that its rank, dtype and clamping lose of the modules it contains."""
        return self._missing(written) / self.total

    @staticmethod
    def _missing(written: Written) -> float:
        return math.fsum(kept.error**2 * kept.module.used_energy for kept in written.modules)


def measure(
    base: Checkpoint, tuned: Checkpoint, chosen: Sequence[tuple[Weight, Weight]], inside: float, device: torch.device
) -> ModelChange:
    """Compare everything that is not among the `chosen` pairs, whose squared change is `inside`."""
    taken = {weight.target.name for weight, _ in chosen}
    pairs, uncompared = _others(base, tuned, taken)
    largest = max((math.prod(weight.shape) for _, weight, _ in pairs), default=1)
    energies = workers.in_order(
        lambda pair: squared_change(pair[1], pair[2], device), pairs, workers.count(largest, device)
    )
    found: dict[tuple[str, str | None], list[float]] = {}
    for (what, _, _), energy in zip(pairs, energies, strict=True):
        if not math.isfinite(energy):
            uncompared += 1
        elif energy:
            found.setdefault(what, []).append(energy)
    parts = [ChangedKind(kind, math.fsum(values), len(values), flag) for (kind, flag), values in found.items()]
    return ModelChange(inside, tuple(sorted(parts, key=lambda part: -part.energy)), uncompared)


def squared_change(base: Weight, tuned: Weight, device: torch.device) -> float:
    """Squared norm of the difference; 0 where only storage rounding differs, or where it is not a weight."""
    before, after = base.load(), tuned.load().reshape(base.shape)
    if not (before.is_floating_point() and after.is_floating_point()) or only_rounding(base, tuned, before, after):
        return 0.0
    first, second = before.reshape(-1).split(_SLICE), after.reshape(-1).split(_SLICE)
    return math.fsum(
        float(torch.linalg.vector_norm(b.to(device, torch.float32) - a.to(device, torch.float32), dtype=torch.float64))
        ** 2
        for a, b in zip(first, second, strict=True)
    )


_Pair = tuple[tuple[str, str | None], Weight, Weight]


def _others(base: Checkpoint, tuned: Checkpoint, taken: set[str]) -> tuple[list[_Pair], int]:
    """((kind, flag), base, tuned) of all that is in both models and not taken; and how many tensors are in one only."""
    pairs: list[_Pair] = []
    alone = 0
    for mine, theirs in ((base.weights, tuned.weights), (base.rest, tuned.rest)):
        for name in dict.fromkeys((*mine, *theirs)):
            if name in taken:
                continue
            a, b = mine.get(name), theirs.get(name)
            if a is None or b is None or math.prod(a.shape) != math.prod(b.shape) or a.shape[:2] != b.shape[:2]:
                alone += 1
            else:
                pairs.append((_what(a), a, b))
    return pairs, alone


def _what(weight: Weight) -> tuple[str, str | None]:
    group = weight.target.group
    if group == rest.GROUP:
        return rest.kind_of(weight.target.path, weight.shape), None
    if group == "unet":
        return RESIDUAL, CONV_FLAG
    return encoders.TITLES.get(group, group), ENCODER_FLAG
