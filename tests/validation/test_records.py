from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from kohya_ext.validation import records
from kohya_ext.validation.records import EMA, RAW, Row, cells, lowest


def failing(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, "killed here")


def row(step: int, weights: str, loss: float) -> Row:
    return Row(step, 1, weights, loss, loss - 0.1, loss + 0.1, math.nan, 4, 2, 0.125, 3.5, 1 << 40)


ROWS = [row(0, RAW, 1 / 3), row(2, RAW, 0.1), row(2, EMA, math.inf)]


def test_what_is_written_is_read_exactly(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    records.write(file, records.COLUMNS, map(cells, ROWS[:1]))
    records.append(file, map(cells, ROWS[1:]))
    assert str(records.validations(file)) == str(ROWS)


def test_a_line_that_a_killed_run_left(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    records.write(file, records.COLUMNS, map(cells, ROWS))
    file.write_text(file.read_text()[:-30])
    assert str(records.validations(file)) == str(ROWS[:2])
    losses = tmp_path / "b.csv"
    losses.write_text("step,epoch,loss\n1,1,0.5\n2,1,x\n3,1")
    assert records.losses(losses) == [(1, 0.5)]


def test_numbers_that_no_run_counts_to(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for count in (10**400, -1, 1 << 90):
        records.write(file, records.COLUMNS, [cells(row(count, RAW, 1.0)), cells(ROWS[1])])
        assert str(records.validations(file)) == str(ROWS[1:2])
        file.write_text(f"step,epoch,loss\n{count},1,0.5\n2,1,0.5\n")
        assert records.losses(file) == [(2, 0.5)]


def test_an_interrupted_run_that_went_further(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    records.write(file, records.COLUMNS, map(cells, ROWS))
    first = file.read_text().splitlines()[:2]
    file.write_text(file.read_text() + "x")
    records.drop_from(file, records.COLUMNS, 2)
    assert file.read_text().splitlines() == first


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_under_the_name_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    for read in (records.validations, records.losses, records.settings):
        with pytest.raises(ValueError, match=r"a\.csv is a pipe"):
            read(tmp_path / "a.csv")


def test_a_rewritten_record_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.csv"
    records.write(file, records.COLUMNS, map(cells, ROWS))
    before = file.read_bytes()
    monkeypatch.setattr(os, "replace", failing)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match=r"killed here|Input/output"):
        records.drop_from(file, records.COLUMNS, 2)
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\0\0", '"'])
def test_another_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    for read in (records.validations, records.losses):
        with pytest.raises(ValueError, match=r"a\.csv"):
            read(tmp_path / "a.csv")


def test_the_lowest() -> None:
    assert lowest(ROWS) is ROWS[1] and lowest(ROWS[2:]) is None and lowest([]) is None


def test_settings_without_secrets_and_paths(tmp_path: Path) -> None:
    said = records.settings_of(
        "sdxl_train.py",
        {"seed": 1, "max_grad_norm": 0.0, "resume": None, "xformers": False, "keep_tokens": 2, "in_json": "",
         "wandb_api_key": "k", "huggingface_token": "t", "train_data_dir": "/home/me/data/dogs/",
         "optimizer_args": ["eps=1", "C:\\x\\y"]},
    )  # fmt: skip
    assert said == {
        "script": "sdxl_train.py",
        "settings": {
            "seed": 1,
            "max_grad_norm": 0.0,
            "keep_tokens": 2,
            "train_data_dir": "dogs",
            "optimizer_args": "eps=1 y",
        },
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(said))
    assert records.settings(file)["script"] == "sdxl_train.py" and records.settings(file)["seed"] == "1"
    file.write_text("[]")
    with pytest.raises(ValueError, match="no settings"):
        records.settings(file)
