"""The figures join Kohya's logs, whichever way the release hands its losses to the trackers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kohya_ext.runtime import accelerators, optimizers
from kohya_ext.runtime.run import run

torch = pytest.importorskip("torch")


class Tracker:
    """What accelerate's trackers are to a caller."""

    def __init__(self) -> None:
        self.lines: list[tuple[dict[str, Any], Any]] = []

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.lines.append((values, step))


class Accelerator:
    """The parts of accelerate's that matter here."""

    def __init__(self) -> None:
        self.trackers: list[Tracker] = []

    def init_trackers(self, *_: Any, **__: Any) -> None:
        self.trackers = [Tracker(), Tracker()]

    def log(self, values: dict[str, Any], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(values, step=step)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "telemetry", None)


@pytest.fixture
def begin() -> Iterator[Callable[..., tuple[Accelerator, argparse.Namespace]]]:
    def start(**settings: Any) -> tuple[Accelerator, argparse.Namespace]:
        args = argparse.Namespace(**{"logging_dir": "logs", "optimizer_type": "AdaCoor", **settings})
        accelerator = accelerators.prepare_accelerator(lambda _: Accelerator(), args)
        accelerator.init_trackers("run")
        return accelerator, args

    yield start


def optimizer_of(args: argparse.Namespace, *groups: Any) -> Any:
    from kohya_ext.optim import AdaCoor

    return optimizers.get_optimizer(lambda *_: ("", "", AdaCoor(groups)), args)[-1]


def weights(value: float = 1.0) -> Any:
    return torch.nn.Parameter(torch.full((50,), value))


def test_the_figures_stand_beside_the_loss_of_the_same_step(begin: Callable[..., Any]) -> None:
    accelerator, args = begin(kohya_ext_log_every="2")  # from a TOML: text
    one, other = weights(), weights()
    optimizer = optimizer_of(args, {"params": [one]}, {"params": [other]})
    for step in range(1, 5):
        one.grad, other.grad = torch.ones(50), torch.full((50,), 2.0)
        optimizer.step()
        accelerator.log({"loss/current": 0.1}, step=step)
        accelerator.log({"loss/epoch": 0.1}, step=step)
    for tracker in accelerator.trackers:
        ours = {
            step: sorted(set(values) - {"loss/current"}) for values, step in tracker.lines if "loss/current" in values
        }
        assert ours[1] == ours[3] == [] and ours[2] == ours[4]
        assert "kohya_ext/effective_lr/group0" in ours[2] and "kohya_ext/moved/group1" in ours[2]
        assert {"kohya_ext/skipped_elements", "kohya_ext/skipped_steps"} < set(ours[2])
        assert all(values == {"loss/epoch": 0.1} for values, _ in tracker.lines if "loss/epoch" in values)
        second = next(values for values, step in tracker.lines if step == 2)
        assert second["kohya_ext/gradient_rms/group1"] == pytest.approx(2.0)
        assert second["kohya_ext/effective_lr/group0"] == pytest.approx(1e-4 / 2**0.5, rel=0.01)


def test_an_empty_entry_takes_nothing(begin: Callable[..., Any]) -> None:
    """Kohya opens its logs with an empty one."""
    accelerator, args = begin(kohya_ext_log_every=1)
    one = weights()
    optimizer = optimizer_of(args, one)
    one.grad = torch.ones(50)
    optimizer.step()
    accelerator.log({}, step=0)
    accelerator.log({"loss": 1.0}, step=1)
    first, second = accelerator.trackers[0].lines
    assert first[0] == {} and "kohya_ext/moved/group0" in second[0]


def test_what_is_handed_in_is_not_changed(begin: Callable[..., Any]) -> None:
    accelerator, args = begin(kohya_ext_log_every=1)
    one = weights()
    optimizer = optimizer_of(args, one)
    one.grad = torch.ones(50)
    optimizer.step()
    values = {"loss": 1.0}
    accelerator.log(values, step=1)
    assert values == {"loss": 1.0}


def test_groups_are_counted_through_all_optimizers(begin: Callable[..., Any]) -> None:
    """`--fused_optimizer_groups` makes several optimizers."""
    accelerator, args = begin(kohya_ext_log_every=1)
    pairs = [(one := weights(), optimizer_of(args, {"params": [one]})) for _ in range(2)]
    for one, optimizer in pairs:
        one.grad = torch.ones(50)
        optimizer.step()
    accelerator.log({"loss": 1.0}, step=1)
    assert {"kohya_ext/moved/group0", "kohya_ext/moved/group1"} < set(accelerator.trackers[0].lines[0][0])


def test_in_a_fused_backward_pass(begin: Callable[..., Any]) -> None:
    accelerator, args = begin(kohya_ext_log_every=2)
    one = weights()
    optimizer = optimizer_of(args, {"params": [one]})
    optimizers.patch_fused_backward(lambda _: None, optimizer)
    for step in (1, 2, 3):
        one.grad = torch.ones(50)
        optimizer.step_param(one, {"stale": "group"})
        one.grad = None
        accelerator.log({"loss": 1.0}, step=step)
    assert [len(values) > 1 for values, _ in accelerator.trackers[0].lines] == [False, True, False]


def test_not_asked_for_nothing_is_touched(begin: Callable[..., Any]) -> None:
    accelerator, args = begin()
    assert "init_trackers" not in vars(accelerator) and "log" not in vars(accelerator.trackers[0])
    assert not optimizer_of(args, weights())._optimizer_step_pre_hooks


def test_other_processes_measure_nothing(begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    _, args = begin(kohya_ext_log_every=1)
    assert not optimizer_of(args, weights())._optimizer_step_pre_hooks


@pytest.mark.parametrize("value", [5, "5"])
def test_without_logs_the_run_stops_at_the_start(value: object) -> None:
    made: list[object] = []
    with pytest.raises(SystemExit):
        accelerators.prepare_accelerator(
            made.append, argparse.Namespace(kohya_ext_log_every=value, logging_dir=None, log_with=None)
        )
    assert made == []


@pytest.mark.parametrize("value", [-1, "often", 1.5, True])
def test_values_that_make_no_sense(value: object) -> None:
    with pytest.raises(SystemExit):
        accelerators.prepare_accelerator(
            lambda _: None, argparse.Namespace(kohya_ext_log_every=value, logging_dir="logs")
        )
