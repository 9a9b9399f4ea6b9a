"""The record of a state: read as it was written, and refused where the state is incomplete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.resume import record
from kohya_ext.resume.record import FILE, RecordError
from tests.resume.states_made import made, save


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    found = record.read(folder)
    assert found.files == {"inner/model.safetensors": 5, "optimizer.bin": 3}
    assert found == made(3, files=found.files)
    assert record.has_record(folder)


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    values = json.loads((folder / FILE).read_text())
    del values["checkpoints"]
    (folder / FILE).write_text(json.dumps(values))
    assert record.read(folder).checkpoints == {}


def test_a_state_that_lacks_a_file_is_not_whole(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    (folder / "optimizer.bin").unlink()
    with pytest.raises(RecordError, match=r"incomplete: optimizer\.bin missing"):
        record.read(folder)


def test_a_state_with_a_file_of_another_size_is_not_whole(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    (folder / "inner" / "model.safetensors").write_bytes(b"mod")
    with pytest.raises(RecordError, match="model"):
        record.read(folder)


def test_a_state_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="saved without --kohya_ext_exact_resume"):
        record.read(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 40, 300])
def test_a_record_that_was_cut_is_refused(tmp_path: Path, size: int) -> None:
    folder = save(tmp_path, 3)
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:size])
    with pytest.raises(RecordError):
        record.read(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 99),
        (["saved_at"], float("nan")),
        (["saved_at"], float("inf")),
        (["position", "step"], -1),
        (["position", "step"], "3"),
        (["position", "step"], 1.5),
        (["position", "over"], 1),
        (["position", "another"], 1),
        (["launch", "words"], []),
        (["launch", "words"], "sdxl_train.py"),
        (["launch", "environment"], {"A": 1}),
        (["saved_at"], "now"),
        (["files"], {"optimizer.bin": "3"}),
        (["losses"], []),
        (["run"], None),
        (["checkpoints"], ["dog.safetensors"]),
        (["checkpoints"], {"raw": 1}),
    ],
)
def test_values_of_a_wrong_type_are_refused(tmp_path: Path, path: list[str], value: Any) -> None:
    folder = save(tmp_path, 3)
    values = json.loads((folder / FILE).read_text())
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / FILE).write_text(json.dumps(values))
    with pytest.raises(RecordError):
        record.read(folder)


def test_secrets_are_not_recorded() -> None:
    given = {"huggingface_token": "hf_x", "wandb_api_key": "k", "max_token_length": 75, "betas": (0.9, 0.99)}
    assert record.plain(given) == {"max_token_length": 75, "betas": [0.9, 0.99]}
