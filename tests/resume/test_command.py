"""The command that resumes a run: its own words, another state, no secrets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.resume.command import ResumeCommand, command, launch_of, run
from kohya_ext.resume.record import RunStart
from kohya_ext.resume.states import SavedState
from tests.resume.states_made import PYTHON, made


@pytest.mark.parametrize(
    "given",
    [
        ["--seed=1", "--resume", "old", "--xformers"],
        ["--resume=old", "--seed=1", "--xformers"],
        ["--seed=1", "--xformers"],
        ["--resume=user/repo/old", "--resume_from_huggingface", "--seed=1", "--xformers"],
    ],
)
def test_the_state_replaces_the_one_before(tmp_path: Path, given: list[str]) -> None:
    record = made(3, launch=RunStart(PYTHON, ["sdxl_train.py", *given], "/kohya"))
    words = command(SavedState(tmp_path / "s", record)).words
    assert words == (PYTHON, "sdxl_train.py", "--seed=1", "--xformers", f"--resume={tmp_path / 's'}")


def test_the_line_can_be_pasted(tmp_path: Path) -> None:
    record = made(3, launch=RunStart(PYTHON, ["train.py", "--output_name=my dog"], "/a b", {"OMP_NUM_THREADS": "1"}))
    made_ = command(SavedState(tmp_path / "s", record))
    assert made_.environment == {"OMP_NUM_THREADS": "1"}
    if sys.platform != "win32":
        assert made_.text == (
            f"cd '/a b' && env OMP_NUM_THREADS=1 {PYTHON} train.py '--output_name=my dog' --resume={tmp_path / 's'}"
        )


def test_secrets_and_foreign_variables_are_not_recorded() -> None:
    words = ["train.py", "--huggingface_token", "hf_1", "--max_token_length=75", "--wandb_api_key=w", "--seed", "1"]
    environment = {"ACCELERATE_MIXED_PRECISION": "bf16", "HF_TOKEN": "hf_2", "HOME": "/root", "PYTHONPATH": "/p"}
    launch = launch_of(PYTHON, words, "/kohya", environment)
    assert launch.words == ["train.py", "--max_token_length=75", "--seed", "1"]
    assert launch.omitted == ["--huggingface_token", "--wandb_api_key"]
    assert launch.environment == {"ACCELERATE_MIXED_PRECISION": "bf16", "PYTHONPATH": "/p"}


@pytest.mark.parametrize("given", [["--wandb_api=s3"], ["--huggingface_tok", "s3"], ["--huggingface_t", "s3"]])
def test_a_secret_under_a_short_name_is_not_recorded(given: list[str]) -> None:
    launch = launch_of(PYTHON, ["train.py", *given, "--seed=1"], "/kohya", {})
    assert launch.words == ["train.py", "--seed=1"]
    assert launch.omitted == [given[0].partition("=")[0]]


def test_it_runs_in_its_folder_with_its_environment(tmp_path: Path) -> None:
    script = "import os, pathlib, sys; pathlib.Path('seen').write_text(os.environ['GIVEN']); sys.exit(75)"
    code = run(ResumeCommand((sys.executable, "-c", script), str(tmp_path), {"GIVEN": "yes"}))
    assert code == 75
    assert (tmp_path / "seen").read_text() == "yes"


def test_a_program_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be started"):
        run(ResumeCommand((str(tmp_path / "gone"),), str(tmp_path), {}))


@pytest.mark.parametrize("words", [("a\0b",), (sys.executable, "-c", "\0")])
def test_words_that_no_process_can_get(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="cannot be started"):
        run(ResumeCommand(words, str(tmp_path), {}))
