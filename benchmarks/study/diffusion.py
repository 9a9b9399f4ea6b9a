"""A small diffusion model that knows some images, and is fine-tuned to others.

Pretraining (AdamW, once for a seed and a width) shows two of three shapes; the fine-tune shows the third, with clipping
at 1 as in Kohya. What is measured is the loss on images, times and noise that no run has seen. `Task` names what can be
changed about a fine-tune.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.study import lora
from benchmarks.study.candidates import Make
from benchmarks.study.shapes import CLASSES, SHAPES, draw

WIDTH = 32
PATCH = 2
BATCH = 16
PRETRAINING = 700
STEPS = 150
HELD_OUT = 256
TIMES = 1000
NEW = SHAPES - 1  # the shape that only the fine-tune shows


@dataclass(frozen=True)
class Task:
    """How the fine-tune is done.

    clip: norm of all gradients, None for no clipping. rank: of a LoRA, None for all weights. coarse: the trained
    weights, and the arithmetic, in bfloat16.
    """

    width: int = WIDTH
    batch: int = BATCH
    steps: int = STEPS
    clip: float | None = 1.0
    rank: int | None = None
    coarse: bool = False


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.condition = nn.Linear(width, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.first(torch.nn.functional.silu(self.norm(x)))
        return x + self.second(torch.nn.functional.silu(hidden * (1 + scale) + shift))


class Denoiser(nn.Module):
    """Predicts the noise in (n, 3, side, side) at times (n,) for classes (n,)."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Conv2d(3 * PATCH**2, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(CLASSES, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.leave = nn.Conv2d(width, 3 * PATCH**2, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        half, dtype = self.width // 2, self.label.weight.dtype
        angles = times[:, None] * torch.exp(-math.log(TIMES) * torch.arange(half) / half)
        angles = torch.cat([angles.sin(), angles.cos()], dim=1)
        condition = self.time(angles.to(dtype)) + self.label(classes)
        hidden = self.enter(nn.functional.pixel_unshuffle(x.to(dtype), PATCH))
        for block in self.blocks:
            hidden = block(hidden, condition)
        return nn.functional.pixel_shuffle(self.leave(hidden), PATCH)


def fine_tune(make: Make, rate: float, seed: int, task: Task = Task()) -> float:
    """The held-out loss on the new shape by that of the pretrained model; inf when it is not a number."""
    start = _pretrained(seed, task.width)
    model = copy.deepcopy(start)
    if task.rank is not None:
        lora.adapt(model, task.rank, seed)
    if task.coarse:
        model.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1000 + seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _train(model, make(trained, rate), task, generator, new=True)
    loss = _held_out(model.float(), seed) / _held_out(start, seed)
    return loss if math.isfinite(loss) else float("inf")


@cache
def _pretrained(seed: int, width: int) -> Denoiser:
    torch.manual_seed(seed)
    model = Denoiser(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    _train(model, optimizer, Task(steps=PRETRAINING), torch.Generator().manual_seed(seed), new=False)
    return model


def _train(
    model: Denoiser, optimizer: torch.optim.Optimizer, task: Task, generator: torch.Generator, *, new: bool
) -> None:
    for _ in range(task.steps):
        loss = _loss(model, task.batch, generator, new=new)
        optimizer.zero_grad()
        loss.backward()
        if task.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        optimizer.step()


def _loss(model: Denoiser, count: int, generator: torch.Generator, *, new: bool) -> Tensor:
    shape = torch.full((count,), NEW) if new else torch.randint(NEW, (count,), generator=generator)
    colour = torch.randint(CLASSES // SHAPES, (count,), generator=generator)
    classes = shape + SHAPES * colour
    images = draw(classes, generator)
    times = torch.randint(1, TIMES, (count,), generator=generator)
    kept = torch.cos(times / TIMES * math.pi / 2).square()[:, None, None, None]
    noise = torch.randn(images.shape, generator=generator)
    predicted = model(kept.sqrt() * images + (1 - kept).sqrt() * noise, times, classes)
    return nn.functional.mse_loss(predicted.float(), noise)


@torch.no_grad()
def _held_out(model: Denoiser, seed: int) -> float:
    generator = torch.Generator().manual_seed(2000 + seed)
    return float(_loss(model, HELD_OUT, generator, new=True))
