"""What `grid` has found, next to the validation of the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("PIL")
from kohya_ext.report.gather import gather
from kohya_ext.report.judging import checkpoints, document, memorizes_from, table
from kohya_ext.report.page import NAMES, page
from kohya_ext.spec.judged import FILE, Judged, decoded, encoded
from kohya_ext.validation import records
from kohya_ext.validation.records import EMA, RAW
from tests.report import runs

FOUND = [
    Judged("dog", 12, 6, 8, 8.0, 0.014),
    Judged("dog-ema-000002", 12, 0, 8, 3.5, 0.6),
    Judged("dog-000002", 12, 1, 8, 7.0, 0.02),
    Judged("dog-000001", 12, 0, 8, 4.0, 0.5),
    Judged("cat-000001", 12, 0, 8, 4.0, 0.5),
    Judged("dog-step00000004", 12, 0),
    Judged("dog-000009", 12, 3),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps an epoch, three epochs; the last file is that of step 6."""
    folder = runs.make(tmp_path / "out")
    losses = [(step, (step + 1) // 2, 1 / step) for step in range(1, 7)]
    records.write(folder / f"dog{records.LOSSES}", records.LOSS_COLUMNS, losses)
    (folder / "judged").mkdir()
    (folder / "judged" / FILE).write_text(encoded(FOUND))
    return folder


def test_each_next_to_its_validation(run: Path) -> None:
    found = [(one.when, one.weights, one.row.step if one.row else None) for one in checkpoints(gather(run))]
    assert found == [
        ("epoch 9", RAW, None), ("epoch 1", RAW, 2), ("step 4", RAW, 4), ("epoch 2", RAW, 4), ("epoch 2", EMA, 4),
        ("the end", RAW, 6),
    ]  # fmt: skip
    text = page(gather(run))
    assert "From epoch 2 on, images of the raw weights are nearer" in text and "7 of 8 (by chance 4; p = 0.02)" in text


def test_from_where_on(run: Path) -> None:
    found = checkpoints(gather(run))
    first = memorizes_from(found)
    assert first is not None and first.when == "epoch 2" and document(first)["validation_loss"] == 0.6
    assert memorizes_from(found, EMA) is None
    assert memorizes_from(one for one in found if one.when != "epoch 1") is first
    assert memorizes_from([*found, *(one for one in found if one.when == "epoch 1")]) is None


def test_without_held_out_images(run: Path) -> None:
    (run / "judged" / FILE).write_text(encoded([FOUND[-1]]))
    text = "".join(table(checkpoints(gather(run)), NAMES))
    assert "held-out" not in text and "3 of 12" in text and "epoch 9" in text


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"models": 1}', '{"models": [[]]}', '{"models": [{"model": "dog"}]}', "[" * 10**5,
        '{"models": [{"model": "dog", "images": "<b>", "copies": 1}]}',
        '{"models": [{"model": "dog", "images": 1, "copies": 1, "chance": 0.1}]}',
        '{"models": [{"model": "dog", "images": 1, "copies": 1, "samples": 1, "nearer": NaN, "chance": 1e999}]}',
    ],
)  # fmt: skip
def test_what_is_no_such_file(run: Path, content: str) -> None:
    (run / "judged" / FILE).write_text(content)
    assert gather(run).judged == () and "compared with" not in page(gather(run))
    with pytest.raises(ValueError):
        decoded(content)


def test_it_comes_back(run: Path) -> None:
    assert decoded(encoded(FOUND)) == FOUND and json.loads(encoded(FOUND))["models"][0]["copies"] == 6
