"""Parameters whose elements are divided among the processes of a run: which process keeps which, and how they join.

A trainer that shards (ZeRO, FSDP) gives each process, its rank, flat tensors that hold runs of the parameters'
elements. A fragment is one such run. Nothing here knows which trainer it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one parameter that this rank keeps.

    name, shape: of the whole parameter. start: the first of the elements in the flat parameter. weights: the elements,
    one dimension, in the dtype in which the optimizer steps them. averaged: whether an EMA is kept of them.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weights: Tensor
    averaged: bool = True


@dataclass(frozen=True)
class Place:
    """A fragment without its elements, as other ranks know it: they are [start, end) of the flat parameter."""

    name: str
    shape: tuple[int, ...]
    start: int
    end: int
    averaged: bool


@dataclass(frozen=True)
class Share:
    """What a rank has to give for a whole parameter: [start, end) of the flat parameter, from one of its places.

    index: of that place in the rank's table.
    """

    rank: int
    index: int
    start: int
    end: int


@dataclass(frozen=True)
class Whole:
    """One whole parameter, and where its elements are. parts: in order, none missing, none twice."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Share, ...]


def places(fragments: Iterable[Fragment]) -> list[Place]:
    """The table of a rank's fragments, in the same order."""
    return [
        Place(
            fragment.name, fragment.shape, fragment.start, fragment.start + fragment.weights.numel(), fragment.averaged
        )
        for fragment in fragments
    ]


def plan(tables: Sequence[Sequence[Place]], mine: int, names: Sequence[str]) -> list[Whole]:
    """How the whole parameters are put together from all ranks' fragments.

    Args:
        tables: of each rank. What several ranks have is taken from one of them.
        mine: the rank that asks; its own fragments come first.
        names: of the parameters, in the order in which they are wanted.

    Raises:
        ValueError: a parameter is nowhere, or elements of it are, or ranks do not agree on its shape.
    """
    known: dict[str, list[tuple[Place, Share]]] = {}
    for rank, table in enumerate(tables):
        for index, place in enumerate(table):
            part = Share(rank, index, place.start, place.end)
            known.setdefault(place.name, []).append((place, part))
    return [_whole(name, known.get(name, []), mine) for name in names]


def _whole(name: str, found: Sequence[tuple[Place, Share]], mine: int) -> Whole:
    shapes = {place.shape for place, _ in found}
    if len(shapes) != 1:
        raise ValueError(f"{name!r} is kept by no rank" if not shapes else f"{name!r} has the shapes {sorted(shapes)}")
    shape = shapes.pop()
    parts: list[Share] = []
    reached, numel = 0, torch.Size(shape).numel()
    while reached < numel:
        usable = [part for _, part in found if part.start <= reached < part.end]
        if not usable:
            raise ValueError(f"no rank keeps element {reached} of {name!r}")
        best = max(usable, key=lambda part: (part.rank == mine, part.end))
        parts.append(Share(best.rank, best.index, reached, best.end))
        reached = best.end
    return Whole(name, shape, tuple(parts))


def names_of(tables: Sequence[Sequence[Place]], *, averaged_only: bool) -> list[str]:
    """The names of all parameters that any rank keeps elements of: those of the first rank first, in its order."""
    return list(dict.fromkeys(place.name for table in tables for place in table if place.averaged or not averaged_only))


def cut(whole: Mapping[str, Tensor], fragments: Iterable[Fragment]) -> Iterator[tuple[Fragment, Tensor]]:
    """Each fragment, and its elements in the whole tensors.

    Raises ValueError where one is missing or of another shape.
    """
    for fragment in fragments:
        tensor = whole.get(fragment.name)
        if tensor is None or tuple(tensor.shape) != fragment.shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ValueError(f"{fragment.name!r} is {found}, the weights are of shape {fragment.shape}")
        yield fragment, tensor.reshape(-1)[fragment.start : fragment.start + fragment.weights.numel()]
