"""What runs have measured here takes the place of an estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.cli.preflight_report import say
from kohya_ext.core.about import MANIFEST
from kohya_ext.core.console import Output
from kohya_ext.preflight.measured import measured_here
from kohya_ext.preflight.memory import Memory, judged
from kohya_ext.preflight.report import Answer
from kohya_ext.spec.cards import GIB
from kohya_ext.spec.measurements import FILE_NAME, Measured


def line(**changes: Any) -> str:
    found = {"settings": "a", "device": "NVIDIA A100", "peak_reserved_bytes": 17 * GIB, "seconds_per_step": 1.9,
             "out_of_memory": False, "date": "2026-11-27", **changes}  # fmt: skip
    return json.dumps(found)


def written(root: Path, *lines: str) -> Path:
    file = (root / MANIFEST).with_name(FILE_NAME)
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return root


def test_the_newest_of_these_settings(tmp_path: Path) -> None:
    root = written(tmp_path, line(date="1"), line(date="2"), line(settings="b"), "{", "[]", line(device=None)[:-9],
                   line(seconds_per_step="fast"), json.dumps({"settings": "a"}))  # fmt: skip
    assert measured_here(root, "a") == Measured("NVIDIA A100", 17 * GIB, 1.9, False, "2")
    assert measured_here(root, "c") is None
    assert measured_here(tmp_path / "elsewhere", "a") is None


def memory(card: int | None = 24 * GIB) -> Memory:
    found = judged({"phases": [{"name": "forward", "bytes": 15 * GIB, "parts": {"weights": 15 * GIB}}]}, card)
    assert found is not None
    return found


def test_a_measurement_narrows_the_interval() -> None:
    before = memory()
    after = before.corrected(Measured("NVIDIA A100", 17 * GIB, 1.9, False, "d"))
    assert before.low < 17 * GIB < after.low < after.peak < after.high < 18.5 * GIB
    assert sum(after.parts.values()) == after.peak
    assert after.verdict == "fits"
    assert before.corrected(None) == before


@pytest.mark.parametrize(("card", "verdict"), [(16, "does not fit"), (48, "fits")])
def test_a_run_that_died_of_memory(card: int, verdict: str) -> None:
    """It does not fit a card of this size, whatever was counted; nothing follows for a larger one."""
    died = Measured("RTX 4080", int(15.2 * GIB), None, True, "d")
    assert memory(card * GIB).corrected(died).verdict == verdict


def test_no_peak_on_a_cpu() -> None:
    before = memory()
    after = before.corrected(Measured("cpu", None, 2.0, False, "d"))
    assert (after.low, after.peak, after.high) == (before.low, before.peak, before.high)


def test_time_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    steps = {"total_steps": 3600, "steps_per_epoch": 36, "epochs": 100, "batches_per_epoch": 36,
             "gradient_accumulation_steps": 1}  # fmt: skip
    measured = memory().corrected(Measured("NVIDIA A100", 17 * GIB, 2.0, False, "2026-11-27"))
    answer = Answer("sdxl_train.py", "steps", None, facts={"steps": steps}, memory=measured, price=0.4)
    say(answer, Output("preflight", as_json=False), "memory")
    said = capsys.readouterr().out
    assert "17.0 GiB reserved, 2 s a step on NVIDIA A100, 2026-11-27" in said
    assert "2.0 hours for 3600 steps, 0.80 at 0.4 an hour" in said
    found = answer.as_json("memory")["memory"]
    assert (found["measured"]["seconds_per_step"], found["hours"], found["cost"]) == (2.0, 2.0, 0.8)
