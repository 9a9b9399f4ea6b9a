"""`--blocks_to_swap`: blocks that Kohya's threads are moving are waited for before their weights are touched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.runtime import averaging  # noqa: E402
from tests.runtime.conftest import Run, close, same  # noqa: E402

Begin = Callable[..., Run]


class Offloader:
    """What `library/custom_offloading_utils.py` has for others to see; a move takes a weight's values elsewhere."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.futures: dict[int, Future[None]] = {}
        self.waits: list[int] = []

    def move(self, block: int, parameter: Any) -> None:
        begun = threading.Event()
        left = parameter.data

        def work() -> None:
            moved = left.clone()
            left.fill_(1e6)  # the memory it leaves is another block's by now
            begun.set()
            threading.Event().wait(0.05)
            parameter.data = moved

        self.futures[block] = self.pool.submit(work)
        begun.wait()

    def _wait_blocks_move(self, block: int) -> None:
        if block in self.futures:
            self.waits.append(block)
            self.futures.pop(block).result()


@pytest.fixture
def run(begin: Begin) -> Run:
    run = begin()
    run.model.offloader_double = Offloader()
    return run


def in_motion(run: Run) -> None:
    for block, parameter in enumerate(run.model.parameters()):
        run.model.offloader_double.move(block, parameter)


def test_an_update_waits(run: Run) -> None:
    for _ in range(4):
        run.step()
        in_motion(run)
        current = averaging.current()
        assert current is not None and current.ready()
    assert current is not None
    with current.in_place():
        assert close(run.weights(), run.expected())
    assert run.model.offloader_double.waits == [0, 1] * 4


def test_the_exchange_waits_and_so_does_the_way_back(run: Run) -> None:
    run.step(3)
    current = averaging.current()
    assert current is not None and current.ready()
    in_motion(run)
    with current.in_place():
        assert close(run.weights(), run.expected())
        in_motion(run)  # as sampling does
    assert same(run.weights(), run.history[-1])


def test_a_look_at_the_health_waits(run: Run) -> None:
    run.step(3)
    current = averaging.current()
    assert current is not None and current.ready()
    in_motion(run)
    assert current.health()["ema_distance"] < 10
