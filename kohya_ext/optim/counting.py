"""Counts gradient elements that could not be used, without making the device wait."""

from __future__ import annotations

import torch
from torch import Tensor


class SkipCount:
    """Elements skipped so far, on every device."""

    def __init__(self) -> None:
        self._on_cpu = 0
        self._elsewhere: dict[torch.device, Tensor] = {}

    def add(self, usable: Tensor) -> None:
        """Count the elements that are False."""
        if usable.device.type == "cpu":
            self._on_cpu += usable.numel() - int(usable.sum())
            return
        self.add_count(usable.numel() - usable.sum())

    def add_count(self, count: Tensor) -> None:
        """Count what a 0-dimensional integer tensor says, when it is ready."""
        total = self._elsewhere.get(count.device)
        if total is None:
            total = self._elsewhere[count.device] = torch.zeros((), dtype=torch.int64, device=count.device)
        total += count

    def total(self) -> int:
        """How many elements so far. Waits for the device."""
        return self._on_cpu + sum(int(total) for total in self._elsewhere.values())
