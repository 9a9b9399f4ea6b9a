"""`kohya-ext resume`: the state that it takes, the command that it prints, and the one that it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kohya_ext.cli.main import main
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, WRONG_USAGE
from kohya_ext.resume.record import RunStart
from tests.resume.states_made import made, save


def test_it_prints_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 2)
    cut = save(tmp_path, 3)
    (cut / "optimizer.bin").unlink()
    assert main(["resume", str(tmp_path)]) == DONE
    text = capsys.readouterr().out
    assert "step 2 of 10" in text and "sdxl_train.py" in text and f"--resume={tmp_path}" in text
    assert "not taken" in text and cut.name in text


def test_json_holds_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = save(
        tmp_path, 2, made(2, launch=RunStart("python", ["t.py", "--a b"], "/k", {"A": "1"}, ["--wandb_api_key"]))
    )
    assert main(["resume", str(tmp_path), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == ["python", "t.py", "--a b", f"--resume={state}"]
    assert (found["folder"], found["environment"], found["complete"]) == ("/k", {"A": "1"}, False)
    assert found["omitted"] == ["--wandb_api_key"] and "--wandb_api_key" in found["warnings"][0]


def test_run_ends_with_the_code_of_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch = RunStart(sys.executable, ["-c", "import sys; sys.exit(len(sys.argv) + 73)"], str(tmp_path))
    save(tmp_path, 2, made(2, launch=launch))
    assert main(["resume", str(tmp_path), "--run"]) == 75
    capsys.readouterr()
    assert main(["resume", str(tmp_path), "--run", "--json"]) == 75
    assert json.loads(capsys.readouterr().out)["exit_code"] == 75


def test_a_complete_run_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 10)
    assert main(["resume", str(tmp_path)]) == DONE
    assert "raise --max_train_steps" in capsys.readouterr().out


def test_a_run_of_epochs_trains_on_by_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--max_train_epochs overrules --max_train_steps."""
    save(tmp_path, 10, made(10, settings={"output_name": "dog", "max_train_epochs": 3}))
    assert main(["resume", str(tmp_path)]) == DONE
    assert "raise --max_train_epochs" in capsys.readouterr().out


def test_nothing_to_resume_from_is_told_from_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == FOUND_PROBLEMS
    assert "no complete state" in capsys.readouterr().err
    assert main(["resume", __file__]) == WRONG_USAGE
