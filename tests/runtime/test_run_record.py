from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.runtime import loader
from kohya_ext.runtime.run import run
from kohya_ext.runtime.run_record import RunRecord
from kohya_ext.validation import records
from kohya_ext.validation.records import Row


def record(folder: Path, **settings: Any) -> RunRecord:
    return RunRecord(
        argparse.Namespace(**{"output_dir": str(folder), "output_name": "dog", "resume": None, **settings})
    )


def row(step: int, mean: float = 0.0) -> Row:
    return Row(step, 1, "raw", 1.0, 0.5, 1.5, mean, 4, 2, 0.1, 1.0, 0)


def steps(folder: Path) -> tuple[list[int], list[int]]:
    validations = records.validations(folder / "dog-validation.csv")
    return [one.step for one in validations], [step for step, _ in records.losses(folder / "dog-losses.csv")]


def test_losses_are_written_when_they_have_to_be(tmp_path: Path) -> None:
    one = record(tmp_path)
    one.validated([row(0)])
    for step in (1, 2, 3):
        one.add(step, 1, float(step))
    assert steps(tmp_path) == ([0], [])
    one.flush(10)
    assert steps(tmp_path) == ([0], [11, 12, 13])
    one.add(4, 1, 6.0)
    one.flush(10)
    assert one.mean() == 3.0 and math.isnan(one.mean())
    one.validated([row(14)])
    assert steps(tmp_path) == ([0, 14], [11, 12, 13, 14])
    assert records.settings(tmp_path / "dog-settings.json")["output_name"] == "dog"


def test_an_exact_resume_goes_on_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = record(tmp_path)
    first.validated([row(0)])
    for step in range(1, 9):
        first.add(step, 1, float(step))
        first.flush(0)
        if step in (4, 8):
            first.mean()
            first.validated([row(step)])
    monkeypatch.setitem(run.loader_layers, loader.RESUME, None)
    again = record(tmp_path, resume="dog-step00000006-state")
    again.add(1, 1, 7.0)
    again.flush(6)
    assert steps(tmp_path) == ([0, 4], [1, 2, 3, 4, 5, 6, 7])
    assert again.mean() == 6.0, "of steps 5, 6 and 7"


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    one = record(tmp_path / "file" / "out")
    one.add(1, 1, 0.5)
    one.flush(0)
    one.validated([row(1)])
    assert capsys.readouterr().err.count("could not be recorded") == 2
