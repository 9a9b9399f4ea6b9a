"""A small diffusion model that knows some images, and is fine-tuned to others.

Pretraining (AdamW, once for a seed) shows two of three shapes; the fine-tune shows the third, with clipping at 1 as in
Kohya. What is measured is the loss on images, times and noise that no run has seen.
"""

from __future__ import annotations

import copy
import math
from functools import cache

import torch
from torch import Tensor, nn

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


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.condition = nn.Linear(WIDTH, 2 * WIDTH)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.first(torch.nn.functional.silu(self.norm(x)))
        return x + self.second(torch.nn.functional.silu(hidden * (1 + scale) + shift))


class Denoiser(nn.Module):
    """Predicts the noise in (n, 3, side, side) at times (n,) for classes (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3 * PATCH**2, WIDTH, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.label = nn.Embedding(CLASSES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.leave = nn.Conv2d(WIDTH, 3 * PATCH**2, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        angles = times[:, None] * torch.exp(-math.log(TIMES) * torch.arange(WIDTH // 2) / (WIDTH // 2))
        condition = self.time(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.label(classes)
        hidden = self.enter(nn.functional.pixel_unshuffle(x, PATCH))
        for block in self.blocks:
            hidden = block(hidden, condition)
        return nn.functional.pixel_shuffle(self.leave(hidden), PATCH)


def fine_tune(make: Make, rate: float, seed: int) -> float:
    """The held-out loss on the new shape by that of the pretrained model; inf when it is not a number."""
    model = copy.deepcopy(_pretrained(seed))
    generator = torch.Generator().manual_seed(1000 + seed)
    _train(model, make(model.parameters(), rate), STEPS, generator, new=True)
    loss = _held_out(model, seed) / _held_out(_pretrained(seed), seed)
    return loss if math.isfinite(loss) else float("inf")


@cache
def _pretrained(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    _train(model, optimizer, PRETRAINING, torch.Generator().manual_seed(seed), new=False)
    return model


def _train(
    model: Denoiser, optimizer: torch.optim.Optimizer, steps: int, generator: torch.Generator, *, new: bool
) -> None:
    for _ in range(steps):
        loss = _loss(model, BATCH, generator, new=new)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
    return nn.functional.mse_loss(predicted, noise)


@torch.no_grad()
def _held_out(model: Denoiser, seed: int) -> float:
    generator = torch.Generator().manual_seed(2000 + seed)
    return float(_loss(model, HELD_OUT, generator, new=True))
