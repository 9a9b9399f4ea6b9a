from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.runtime import validation_options
from kohya_ext.runtime.run import run
from kohya_ext.runtime.validation_options import ValidationOptions


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sdxl_train.py"])


def read(**settings: Any) -> ValidationOptions | None:
    return validation_options.read(argparse.Namespace(**settings))


def test_the_values_in_their_types(tmp_path: Path) -> None:
    assert read() is None and read(kohya_ext_validation_split=0.0) is None
    assert read(kohya_ext_validate=str(tmp_path)) == ValidationOptions(str(tmp_path), 0.0, 0, 4, 0, False)
    text = {"kohya_ext_validation_split": "0.1", "kohya_ext_validate_every": "5", "save_best": True}  # from a TOML
    assert read(**text) == ValidationOptions(None, 0.1, 5, 4, 0, True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kohya_ext_validation_split": 1.5}, "up to, not including, 1"),
        ({"kohya_ext_validation_split": 0.1, "kohya_ext_validate_every": -1}, "whole number of at least 0"),
        ({"kohya_ext_validate": "here", "kohya_ext_validation_split": 0.1}, "give one of them"),
        ({"kohya_ext_validate": "nowhere"}, "there is no such folder"),
        ({"kohya_ext_validation_split": 0.1, "deepspeed": True}, "DeepSpeed"),
        ({"kohya_ext_validation_split": 0.1, "optimizer_type": "AdamWScheduleFree"}, "AdamWScheduleFree"),
        ({"kohya_ext_validation_split": 0.1, "validation_split": 0.2}, "Kohya's own validation"),
        ({"kohya_ext_validation_split": 0.1, "dataset_class": "a.B"}, "--dataset_class"),
    ],
)
def test_what_cannot_work(settings: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(**settings)
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["train_textual_inversion", "sdxl_train_control_net", "flux_train_control_net", "train_leco"]
)
def test_scripts_with_other_data(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"/x/{name}.py"])
    assert read() is None
    with pytest.raises(SystemExit):
        read(kohya_ext_validation_split=0.1)
    assert name in capsys.readouterr().err


def test_a_flag_that_does_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(save_best=True) is None and read(kohya_ext_validate_every=5) is None
    said = capsys.readouterr().out
    assert "--save_best is set, but neither" in said and "--kohya_ext_validate_every is set" in said


def test_a_fork_with_such_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.yielded, "validation", "--save_best")
    assert read(kohya_ext_validation_split=0.1) is None
    assert not validation_options.asked(argparse.Namespace(kohya_ext_validation_split=0.1))
