"""Counts gradient elements that could not be used, and steps in which none could, without making the device wait."""

from __future__ import annotations

import torch
from torch import Tensor


class SkipCount:
    """Elements skipped so far, on every device."""

    def __init__(self) -> None:
        self._on_cpu = 0
        self._elsewhere: dict[torch.device, Tensor] = {}
        self._before: int | Tensor = 0
        self._whole_steps: int | Tensor = 0

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

    def end_step(self, elements: int) -> None:
        """A step with this many gradient elements is over: note whether all of them were skipped."""
        total: int | Tensor = self._on_cpu
        for count in self._elsewhere.values():
            total = total + count if isinstance(total, int) else total + count.to(total.device, non_blocking=True)
        self._whole_steps = self._whole_steps + (total - self._before == elements)
        self._before = total

    def whole_steps(self) -> int:
        """How many steps so far used no element at all. Waits for the device."""
        return int(self._whole_steps)

    def total(self) -> int:
        """How many elements so far. Waits for the device."""
        return self._on_cpu + sum(int(total) for total in self._elsewhere.values())
