"""Decomposing many matrices side by side: on a CPU one thread a matrix uses the cores better than all on one."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MEMORY = 1 << 30  # bytes that all workers together may take for their matrices
COPIES = 5  # float32 copies of its largest matrix that a worker may need at once

Job = TypeVar("Job")
Result = TypeVar("Result")


def count(largest: int, device: torch.device) -> int:
    """How many workers suit matrices of up to `largest` elements. A GPU is kept busy by one."""
    if device.type != "cpu":
        return 1
    return max(1, min(_cores(), MEMORY // max(1, largest * 4 * COPIES)))


def in_order(run: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Results in the order of the jobs; no more than one result a worker waits for its turn."""
    with _threads_each(max(1, _cores() // workers)), ThreadPoolExecutor(workers) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                running.append(pool.submit(run, job))
                if len(running) > workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def pick_device(name: str) -> torch.device:
    """auto: a CUDA device when there is one, else the CPU (others have no float64, which the last step needs)."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cores() -> int:
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:
        available = os.cpu_count() or 1
    return max(1, min(available, torch.get_num_threads()) if _limited() else available)


def _limited() -> bool:
    """Somebody has said how many threads torch shall use."""
    return "OMP_NUM_THREADS" in os.environ or "MKL_NUM_THREADS" in os.environ


@contextlib.contextmanager
def _threads_each(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
