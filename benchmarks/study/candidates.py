"""The optimizers of the study, each with the grid of learning rates that its users would try."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kohya_ext.optim import AdaCoor

Make = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Candidate:
    """recommended: the rate its authors or the guide name; rates: the grid, which holds it."""

    name: str
    make: Make
    recommended: float
    rates: tuple[float, ...]


def candidates() -> list[Candidate]:
    """AdaCoor in each mode and its peers. Raises SystemExit that says what to install."""
    adaptive = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    found = (0.1, 0.3, 1.0, 3.0, 10.0)
    return [
        Candidate("AdaCoor 16 bits", lambda p, lr: AdaCoor(p, lr=lr), 1.0, adaptive),
        Candidate("AdaCoor 16, stochastic", lambda p, lr: AdaCoor(p, lr=lr, stochastic_state=True), 1.0, adaptive),
        Candidate("AdaCoor 32", lambda p, lr: AdaCoor(p, lr=lr, state_bits=32), 1.0, adaptive),
        Candidate("AdaCoor 8", lambda p, lr: AdaCoor(p, lr=lr, state_bits=8), 1.0, adaptive),
        Candidate("AdaCoor auto_lr", lambda p, lr: AdaCoor(p, lr=lr, auto_lr=True), 1.0, found),
        Candidate("AdaCoor auto_lr, m", lambda p, lr: AdaCoor(p, lr=lr, auto_lr=True, momentum=0.9), 1.0, found),
        Candidate("Adagrad", lambda p, lr: torch.optim.Adagrad(p, lr=lr), 1e-2, _decades(-4, 0)),
        Candidate("AdamW", lambda p, lr: torch.optim.AdamW(p, lr=lr), 1e-3, _decades(-5, -1)),
        Candidate("Lion", _peer("Lion"), 1e-4, _decades(-6, -2)),
        Candidate("Prodigy", _peer("Prodigy"), 1.0, found),
        # as shipped it has a momentum of 0.9: `auto_lr` without momentum is compared with this one
        Candidate("Prodigy, no momentum", _peer("Prodigy", betas=(0.0, 0.999)), 1.0, found),
    ]


def _decades(low: int, high: int) -> tuple[float, ...]:
    """Two a decade: 1e-4, 3e-4, 1e-3, ..."""
    return (*(factor * 10.0**power for power in range(low, high) for factor in (1, 3)), 10.0**high)


def _peer(name: str, **settings: Any) -> Make:
    try:
        cls: Any = getattr(importlib.import_module("pytorch_optimizer"), name)
    except ImportError as error:
        raise SystemExit(f"{name} comes from pytorch_optimizer: pip install pytorch_optimizer") from error
    return lambda params, lr: cls(params, lr=lr, **settings)
