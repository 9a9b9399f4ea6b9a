"""Images made by formula: a coloured shape on a dark ground, softly drawn."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 16
COLOURS = torch.tensor([[0.9, 0.25, 0.2], [0.3, 0.75, 0.3], [0.3, 0.5, 0.95], [0.95, 0.8, 0.25]]) * 2 - 1
SHAPES = 3  # circle, square, diamond
CLASSES = SHAPES * len(COLOURS)
GROUND = -0.8


def draw(classes: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 3, SIDE, SIDE) in -1..1, one for each class number (n,), at varying places and sizes."""
    count = len(classes)
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shift = torch.rand(2, count, 1, 1, generator=generator) * 0.4 - 0.2
    radius = torch.rand(count, 1, 1, generator=generator) * 0.25 + 0.45
    dx, dy = (x - shift[0]).abs(), (y - shift[1]).abs()
    distances = torch.stack([(dx.square() + dy.square()).sqrt(), torch.maximum(dx, dy), (dx + dy) * 0.75])
    shape, colour = classes % SHAPES, classes // SHAPES
    inside = torch.sigmoid((radius - distances[shape, torch.arange(count)]) * SIDE)[:, None]
    return inside * COLOURS[colour][:, :, None, None] + (1 - inside) * GROUND
