"""Ranks that are threads: a model whose parameters are divided among several of them, as trainers that shard do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from kohya_ext.ema.fragments import Fragment
from kohya_ext.ema.partitioned import Partition

Result = TypeVar("Result")
TOKEN = bytes(range(32))


class Meeting:
    """A collective operation among threads: each gives an object, and all get those of all."""

    def __init__(self, ranks: int) -> None:
        self._given: list[Any] = [None] * ranks
        self._barrier = threading.Barrier(ranks)

    def gather(self, rank: int) -> Callable[[Any], Sequence[Any]]:
        def all_gather(value: Any) -> Sequence[Any]:
            self._given[rank] = value
            self._barrier.wait(30)
            return list(self._given)

        return all_gather


def on_ranks(ranks: int, work: Callable[[int], Result]) -> list[Result]:
    """What `work(rank)` returns on each rank; they run at the same time. Raises what the first of them raised."""
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(ranks)]


def one_flat_tensor(named: dict[str, Tensor], ranks: int) -> list[list[Fragment]]:
    """ZeRO 1 and 2: all parameters one after the other, cut into equal partitions, the last one padded."""
    whole = torch.cat([tensor.reshape(-1) for tensor in named.values()])
    size = -(-whole.numel() // ranks)
    flats = [torch.cat([part, torch.zeros(size - part.numel())]) for part in whole.split(size)]
    divided: list[list[Fragment]] = []
    for rank in range(ranks):
        fragments, offset = [], 0
        for name, tensor in named.items():
            start, end = max(offset, rank * size), min(offset + tensor.numel(), (rank + 1) * size)
            if start < end:
                own = flats[rank][start - rank * size : end - rank * size]
                fragments.append(Fragment(name, tuple(tensor.shape), start - offset, own))
            offset += tensor.numel()
        divided.append(fragments)
    return divided


def each_by_itself(named: dict[str, Tensor], ranks: int) -> list[list[Fragment]]:
    """ZeRO 3: each parameter cut into equal parts."""
    divided: list[list[Fragment]] = [[] for _ in range(ranks)]
    for name, tensor in named.items():
        size = -(-tensor.numel() // ranks)
        for rank, part in enumerate(tensor.reshape(-1).split(size)):
            divided[rank].append(Fragment(name, tuple(tensor.shape), rank * size, part.clone()))
    return divided


def partitions(divided: list[list[Fragment]]) -> list[Partition]:
    """Each rank's, connected with the others."""
    meeting = Meeting(len(divided))
    return on_ranks(len(divided), lambda rank: Partition(divided[rank], rank, "127.0.0.1", TOKEN, meeting.gather(rank)))
