"""What AdaCoor skipped is said once, when a checkpoint is saved and when the run ends."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from kohya_ext.runtime import checkpoints, telemetry
from kohya_ext.runtime.run import run

torch = pytest.importorskip("torch")


def save_sd_model_on_train_end_common(args: Any, sd_saver: Any, diffusers_saver: Any) -> str:
    return "saved"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "skip_counts", [])
    monkeypatch.setattr(run, "skips_told", 0)


def stepped(*values: float) -> Any:
    from kohya_ext.optim import AdaCoor

    one = torch.nn.Parameter(torch.ones(len(values)))
    optimizer = AdaCoor([one])
    one.grad = torch.tensor(values)
    optimizer.step()
    return optimizer


def said(capsys: pytest.CaptureFixture[str]) -> str:
    assert checkpoints.save_at_end(save_sd_model_on_train_end_common, None, None, None) == "saved"
    return capsys.readouterr().out


def test_a_save_says_what_was_left_out_and_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    telemetry.count_skips(stepped(1.0, 2.0))
    assert said(capsys) == ""
    telemetry.count_skips(stepped(1.0, nan))
    assert "skipped 1 gradient elements so far that were not finite\n" in said(capsys)
    assert said(capsys) == ""
    telemetry.count_skips(stepped(nan, nan))
    assert "skipped 3 gradient elements so far that were not finite, 1 whole steps among them\n" in said(capsys)


def test_the_count_goes_on_after_a_resume(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = stepped(1.0, float("inf"))
    telemetry.count_skips(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
    optimizer.step()
    assert optimizer.skipped == 3 and "skipped 3" in said(capsys)


def test_other_optimizers_keep_no_count(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.count_skips(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0))
    assert said(capsys) == ""


def test_the_end_of_a_run_says_it_too() -> None:
    """A LoRA run does not pass through the savers of checkpoints."""
    program = """
import torch
from kohya_ext.optim import AdaCoor
from kohya_ext.runtime import telemetry
one = torch.nn.Parameter(torch.ones(2))
optimizer = AdaCoor([one])
telemetry.count_skips(optimizer)
one.grad = torch.tensor([1.0, float("nan")])
optimizer.step()
del optimizer
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "kohya_ext: AdaCoor skipped 1 gradient elements so far that were not finite\n"
