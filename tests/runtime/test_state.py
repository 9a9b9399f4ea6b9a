"""The EMA in Kohya's resume states: bit for bit the uninterrupted one, and never the reason a resume fails."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.runtime import accelerators, averaging  # noqa: E402
from tests.runtime.conftest import Run, same  # noqa: E402

Begin = Callable[..., Run]


class Accelerator:
    """What we touch of accelerate's: it saves and loads the model and the optimizer."""

    def __init__(self, run: Run | None = None) -> None:
        self.run = run

    def prepare(self, *models: Any) -> Any:
        return models

    def save_state(self, output_dir: str) -> None:
        assert self.run is not None
        Path(output_dir).mkdir()
        torch.save([self.run.model.state_dict(), self.run.optimizer.state_dict()], Path(output_dir, "state.pt"))

    def load_state(self, input_dir: str) -> None:
        assert self.run is not None
        model, optimizer = torch.load(Path(input_dir, "state.pt"))
        self.run.model.load_state_dict(model)
        self.run.optimizer.load_state_dict(optimizer)


def watched(run: Run) -> Accelerator:
    """The accelerator of `run`, as the wrapped prepare_accelerator gives it to a script."""
    accelerator = accelerators.prepare_accelerator(lambda args: Accelerator(), run.args)
    accelerator.run = run
    averaging.meet(run.model)
    averaging.follow(run.optimizer)
    return accelerator


def averaged(run: Run) -> dict[str, Any]:
    average = averaging.current()
    assert average is not None
    with average.in_place():
        return run.weights()


@pytest.mark.parametrize("schedule", ["debiased", "constant", "warmup"])
def test_resumed_is_bit_for_bit_uninterrupted(begin: Begin, tmp_path: Path, schedule: str) -> None:
    run = begin(ema_schedule=schedule)
    accelerator = watched(run)
    run.step(3)
    accelerator.save_state(str(tmp_path / "state"))
    torch.manual_seed(7)
    run.step(3)
    uninterrupted = averaged(run)

    resumed = begin(ema_schedule=schedule)
    accelerator = watched(resumed)
    accelerator.load_state(str(tmp_path / "state"))
    torch.manual_seed(7)
    resumed.step(3)
    assert same(resumed.weights(), run.weights())
    assert same(averaged(resumed), uninterrupted)


def test_a_state_saved_within_a_save_of_the_average_holds_the_raw_weights(begin: Begin, tmp_path: Path) -> None:
    """Upstream's savers save the state themselves, and with `--ema_save only` the EMA is in the model then."""
    run = begin()
    accelerator = watched(run)
    run.step(3)
    raw = run.weights()
    average = averaging.current()
    assert average is not None
    with average.in_place():
        accelerator.save_state(str(tmp_path / "state"))
        assert not same(run.weights(), raw)
    model, _ = torch.load(tmp_path / "state" / "state.pt")
    assert same(model, raw)


def test_a_state_without_an_average_begins_a_new_one(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    Accelerator(run).save_state(str(tmp_path / "old"))
    accelerator = watched(run)
    accelerator.load_state(str(tmp_path / "old"))
    assert "contains no EMA" in capsys.readouterr().out
    run.step()
    assert same(averaged(run), run.weights())


def test_a_state_of_another_model_is_refused(begin: Begin, tmp_path: Path) -> None:
    run = begin()
    accelerator = watched(run)
    run.step()
    accelerator.save_state(str(tmp_path / "state"))
    other = begin()
    accelerator = watched(other)
    average = averaging.current()
    assert average is not None
    stranger = torch.nn.Linear(5, 5)
    average.tracks[0].optimizer.param_groups[0]["params"] = list(stranger.parameters())
    with pytest.raises(SystemExit):
        average.load_state(tmp_path / "state")


def test_without_the_flag_the_accelerator_is_untouched() -> None:
    accelerator = Accelerator()
    assert accelerators.prepare_accelerator(lambda args: accelerator, argparse.Namespace()) is accelerator
    assert "save_state" not in vars(accelerator)


def test_the_oldest_scripts_get_a_tuple(begin: Begin) -> None:
    run = begin()
    accelerator, unwrap = accelerators.prepare_accelerator(lambda args: (Accelerator(), "unwrap"), run.args)
    assert unwrap == "unwrap"
    assert "save_state" in vars(accelerator)
