"""Bytes of all tensors that are alive on the training device, by what they are for, and the most that there were.

A storage counts from the operation that makes it until it is freed, rounded up as torch's allocator for CUDA does it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

GRAIN = 512  # bytes: the allocator's smallest unit
WEIGHTS, TEXT_ENCODERS, VAE, GRADIENTS, OPTIMIZER = "weights", "text_encoders", "vae", "gradients", "optimizer"
EMA, ACTIVATIONS, COPIES = "ema", "activations", "copies"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, EMA, ACTIVATIONS, COPIES, VAE, TEXT_ENCODERS)
_CAST = torch.ops.aten._to_copy.default


@dataclass
class Peak:
    """The most that was alive in one phase: bytes in total, and by part."""

    size: int = 0
    parts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Counts one device's storages.

    phase: what the run is doing. part: what new storages are for.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.phase, self.part = "loading", WEIGHTS
        self.now = 0
        self.by_part: Counter[str] = Counter()
        self.peaks: dict[str, Peak] = {}
        self._making: dict[Any, bool] = {}
        self._live: dict[int, tuple[int, str]] = {}

    def note(self, function: Any, args: Any, made: Any) -> None:
        """An operation has made `made`, a tensor or anything that holds some."""
        if not self._makes(function):
            return
        for tensor in (made,) if isinstance(made, torch.Tensor) else tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and self._on_it(tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._live:
                    self._count(storage, key, self._part_of(function, args))

    def _makes(self, function: Any) -> bool:
        """Whether an operation makes new storages: no view, nothing in place."""
        known = self._making.get(function)
        if known is None:
            returns = function._schema.returns
            known = self._making[function] = any(one.alias_info is None for one in returns)
        return known

    def _on_it(self, tensor: Any) -> bool:
        device = getattr(tensor, "fake_device", None) or tensor.device
        return bool(device == self.device)

    def _part_of(self, function: Any, args: Any) -> str:
        if function is _CAST and self.part == ACTIVATIONS and args and isinstance(args[0], torch.Tensor):
            source = self._live.get(args[0].untyped_storage()._cdata)
            if source is not None and source[1] in (WEIGHTS, TEXT_ENCODERS):
                return COPIES  # autocast keeps them until the forward pass ends
        return self.part

    def _count(self, storage: Any, key: int, part: str) -> None:
        size = -(-storage.nbytes() // GRAIN) * GRAIN
        self._live[key] = (size, part)
        weakref.finalize(storage, self._free, key)
        self.by_part[part] += size
        self.now += size
        peak = self.peaks.setdefault(self.phase, Peak())
        if self.now > peak.size:
            peak.size, peak.parts = self.now, dict(self.by_part)

    def _free(self, key: int) -> None:
        size, part = self._live.pop(key, (0, ""))
        self.now -= size
        self.by_part[part] -= size

    def file(self, tensor: Any, part: str) -> None:
        """Say what a tensor that is alive is for."""
        if not isinstance(tensor, torch.Tensor) or tensor.device != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:  # made by no operation: read from a file
            self._count(storage, key, part)
        size, before = self._live[key]
        if before != part:
            self._live[key] = (size, part)
            self.by_part[before] -= size
            self.by_part[part] += size

    def enter(self, phase: str, part: str) -> None:
        """The run goes on to something else."""
        self.phase, self.part = phase, part
        peak = self.peaks.setdefault(phase, Peak())
        if self.now > peak.size:
            peak.size, peak.parts = self.now, dict(self.by_part)

    def as_json(self) -> dict[str, Any]:
        """Peak bytes of each phase, and by part."""
        return {
            "phases": [
                {"name": name, "bytes": peak.size, "parts": {part: peak.parts.get(part, 0) for part in PARTS}}
                for name, peak in self.peaks.items()
            ]
        }
