"""The settings in which `auto_lr` must hold, and what is run in each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.study.diffusion import Task
from kohya_ext.optim import AdaCoor

BATCHES = (1, 4, 16)
CLIPS = (1.0, None)
RANKS = (None, 4)
WIDTHS = (8, 16, 32)
LONG = 3000  # steps; the others are of 150
# AdamW's, from which the best is taken in each setting
FULL_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LORA_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
MOMENTUM = (0.0, 0.9)
GUESSES = (1e-12, 1e-8, 1e-6)


@dataclass(frozen=True)
class Run:
    """One fine-tune. settings: of AdaCoor as (name, value), None for AdamW; rate: 1 for AdaCoor."""

    task: Task
    settings: tuple[tuple[str, Any], ...] | None
    rate: float
    seed: int

    def make(self, params: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        """The optimizer, with default arguments but for `settings`."""
        if self.settings is None:
            return torch.optim.AdamW(params, lr=rate)
        own = dict(self.settings)
        # gathered is the same bits in fewer calls; codes of 8 bits are never gathered
        return AdaCoor(params, lr=rate, auto_lr=True, foreach=True, **own)

    def key(self) -> dict[str, Any]:
        """What tells one run from another, as JSON has it."""
        settings = None if self.settings is None else dict(self.settings)
        return {"task": asdict(self.task), "settings": settings, "rate": self.rate, "seed": self.seed}


def runs(seed: int) -> Iterator[Run]:
    """All of one seed, setting by setting: those of 150 steps in an order that mixes the axes, then the long ones."""
    axes = list(itertools.product(BATCHES, CLIPS, RANKS, WIDTHS))
    for number in range(len(axes)):
        batch, clip, rank, width = axes[number * 23 % len(axes)]
        yield from _of_setting(Task(width=width, batch=batch, clip=clip, rank=rank), seed, number)
    for number, (batch, rank) in enumerate(itertools.product(BATCHES[::2], RANKS)):
        clip = CLIPS[(number + number // 2) % 2]
        yield from _of_setting(Task(width=WIDTHS[0], batch=batch, clip=clip, rank=rank, steps=LONG), seed, number)


def _of_setting(task: Task, seed: int, number: int) -> Iterator[Run]:
    for rate in FULL_RATES if task.rank is None else LORA_RATES:
        yield Run(task, None, rate, seed)
    for momentum in MOMENTUM:
        for guess in GUESSES if task.steps != LONG else (1e-8,):
            yield Run(task, (("eps", guess), ("momentum", momentum)), 1.0, seed)
    if task.steps == LONG:
        return
    coarse = Task(**{**asdict(task), "coarse": True})
    for momentum in MOMENTUM:
        yield Run(coarse, (("eps", 1e-8), ("momentum", momentum)), 1.0, seed)
    # of 8 bits one of the two: their steps take several times as long
    yield Run(coarse, (("eps", 1e-8), ("momentum", MOMENTUM[number % 2]), ("state_bits", 8)), 1.0, seed)
