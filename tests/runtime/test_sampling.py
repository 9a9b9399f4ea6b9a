"""Samples of a run that can be interrupted: they change nothing behind them, and delay no stop."""

from __future__ import annotations

import argparse
import os
import random
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.runtime import sampling  # noqa: E402
from kohya_ext.runtime.interruption import Interruption  # noqa: E402
from kohya_ext.runtime.run import run as process  # noqa: E402
from tests.runtime.conftest import Run, same  # noqa: E402

Begin = Callable[..., Run]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="these tests send POSIX signals to themselves")


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interruption]:
    made = Interruption()
    monkeypatch.setattr(process, "resume", SimpleNamespace(interruption=made, stands_still=lambda: False))
    monkeypatch.setattr(process, "undoing", [])
    made.listen()
    yield made
    while process.undoing:
        process.undoing.pop()()


def draw(args: Any, during: Callable[[str], None], *, epoch: int | None = 1) -> None:
    def sample_images_common(pipe_class: Any, accelerator: Any, args: Any, epoch: Any, steps: int) -> None:
        during(args.output_name)

    args.__dict__.update(sample_every_n_steps=None, sample_every_n_epochs=1)
    sampling.sample_images(sample_images_common, None, None, args, epoch, 5)


def plain() -> argparse.Namespace:
    return argparse.Namespace(output_name="dog")


def test_none_are_begun_once_a_signal_has_come(interruption: Interruption, capsys: pytest.CaptureFixture[str]) -> None:
    drawn: list[str] = []
    draw(plain(), drawn.append)
    signal.raise_signal(signal.SIGTERM)
    draw(plain(), drawn.append)
    assert drawn == ["dog"]
    assert "samples are skipped: a signal" in capsys.readouterr().out


def test_those_under_way_are_left(interruption: Interruption, capsys: pytest.CaptureFixture[str]) -> None:
    reached: list[str] = []

    def interrupted(_: str) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end")
        except Exception:  # as samplers have it: it must not swallow the end
            reached.append("an error")

    draw(plain(), interrupted)
    assert not reached and interruption.asked_by == signal.SIGTERM
    assert "samples are skipped" in capsys.readouterr().out
    signal.raise_signal(signal.SIGTERM)  # nothing is under way any more


def test_the_raw_weights_are_back_where_the_emas_samples_are_left(begin: Begin, interruption: Interruption) -> None:
    run, drawn = begin(ema_sample="both"), []
    run.step(2)

    def interrupted(name: str) -> None:
        drawn.append(name)
        if name == "dog-ema":
            assert not same(run.weights(), run.history[-1])
            signal.raise_signal(signal.SIGTERM)
            drawn.append("the end")

    draw(run.args, interrupted)
    assert drawn == ["dog", "dog-ema"]
    assert same(run.weights(), run.history[-1])


def test_the_emas_are_not_begun_where_a_signal_ended_the_raw_ones(begin: Begin, interruption: Interruption) -> None:
    run, drawn = begin(ema_sample="both"), []
    run.step(2)

    def interrupted(name: str) -> None:
        drawn.append(name)
        signal.raise_signal(signal.SIGTERM)

    draw(run.args, interrupted)
    assert drawn == ["dog"]


@pytest.mark.parametrize("stopped", [False, True])
def test_random_numbers_go_on_as_if_nothing_were_drawn(interruption: Interruption, stopped: bool) -> None:
    torch.manual_seed(3)
    random.seed(3)
    expected = random.random(), float(torch.rand(1))
    torch.manual_seed(3)
    random.seed(3)

    def drawing(_: str) -> None:
        torch.rand(7)
        random.random()
        if stopped:
            signal.raise_signal(signal.SIGTERM)

    draw(plain(), drawing)
    assert (random.random(), float(torch.rand(1))) == expected


def test_a_call_that_draws_nothing_is_passed_on_as_it_is(interruption: Interruption) -> None:
    signal.raise_signal(signal.SIGTERM)
    drawn: list[str] = []
    draw(plain(), drawn.append, epoch=None)
    assert drawn == ["dog"], "Kohya's own test ends it at once"
