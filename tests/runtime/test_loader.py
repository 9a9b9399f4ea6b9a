"""What is put around a script's loaders: in which order, for which frame, and gone with the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from accelerate.data_loader import DataLoaderShard  # noqa: E402

from kohya_ext.runtime import loader  # noqa: E402
from kohya_ext.runtime.run import run  # noqa: E402


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    run.restore()


def shard() -> Any:
    return DataLoaderShard(torch.arange(3), batch_size=None)


def adding(what: int, seen: list[Any]) -> loader.Layer:
    def layer(batches: Iterator[Any], taken: loader.Pass) -> Iterator[Any]:
        seen.append(taken)
        for batch in batches:
            yield 10 * batch + what

    return layer


def test_the_resume_is_inside_the_validation_whoever_comes_first() -> None:
    loader.insert(loader.VALIDATION, adding(2, []))
    loader.insert(loader.RESUME, adding(1, []))
    assert [int(batch) for batch in shard()] == [12, 112, 212]


def test_a_layer_knows_the_loader_and_the_function_that_iterates() -> None:
    seen: list[loader.Pass] = []
    loader.insert(loader.RESUME, adding(0, seen))
    batches = shard()
    for _ in enumerate(batches):
        pass
    assert seen == [loader.Pass(batches, sys._getframe())]


def test_one_at_the_same_position_is_replaced_and_the_next_run_has_none() -> None:
    original = DataLoaderShard.__iter__
    for what in (1, 2):
        loader.insert(loader.RESUME, adding(what, []))
    assert [int(batch) for batch in shard()] == [2, 12, 22]
    run.restore()
    assert DataLoaderShard.__iter__ is original
    assert [int(batch) for batch in shard()] == [0, 1, 2]


def test_an_unknown_position_is_refused() -> None:
    with pytest.raises(ValueError, match="resume, validation"):
        loader.insert("elsewhere", adding(0, []))
