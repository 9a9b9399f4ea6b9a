from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.report.gather import by_time, gather
from kohya_ext.validation import records
from tests.report import runs

pytest.importorskip("PIL")


def test_all_that_a_run_leaves(tmp_path: Path) -> None:
    folder = runs.make(tmp_path / "out")
    for name in (
        "dog_e000001_00_20260101",
        "dog_e000002_00_20260101",
        "dog-ema_e000002_00_2",
        "dog_000200_01_2",
        "cat_e000001_00_2",
    ):
        runs.draw(folder / "sample" / f"{name}.png")
    runs.draw(folder / "judged" / "sheet.png")
    found = gather(folder)
    assert found.name == "dog" and len(found.rows) == 7 and found.losses[:2] == ((1, 1.0), (2, 0.5))
    assert list(by_time(found.samples)) == ["epoch 1", "epoch 2", "EMA, epoch 2", "step 200"]
    assert found.sheets == (folder / "judged" / "sheet.png",)
    assert found.settings == {"script": "sdxl_train.py", "learning_rate": "1e-05", "output_name": "<b>"}
    assert found.best["step"] == "4" and len(found.checkpoints) == 2


def test_a_run_without_records(tmp_path: Path) -> None:
    """Its checkpoints tell the name and, of a LoRA, the settings."""
    runs.save(tmp_path / "cat-step00000004.safetensors", {"ss_seed": "3", "ss_tag_frequency": "{}", "x": "y"})
    found = gather(tmp_path)
    assert (found.name, found.rows, found.losses, found.settings) == ("cat", (), (), {"seed": "3"})


def test_which_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        gather(tmp_path / "absent")
    with pytest.raises(UsageError, match="holds no run"):
        gather(tmp_path)
    runs.make(tmp_path, "dog"), runs.make(tmp_path, "cat")
    with pytest.raises(UsageError, match=r"several runs \(cat, dog\)"):
        gather(tmp_path)
    with pytest.raises(UsageError, match="no run called 'cow'"):
        gather(tmp_path, "cow")
    assert gather(tmp_path, "cat").name == "cat"
    runs.save(tmp_path / "owl-000001.safetensors", {})
    assert len(gather(tmp_path, "owl").checkpoints) == 1, "a run without records next to others that have some"


@pytest.mark.parametrize("suffix", [records.VALIDATIONS, records.LOSSES, records.SETTINGS, "-best.safetensors"])
def test_a_damaged_record_hides_nothing_else(tmp_path: Path, suffix: str) -> None:
    folder = runs.make(tmp_path)
    (folder / f"dog{suffix}").write_bytes(b"\xff\x00garbage")
    found = gather(folder)
    assert len(found.checkpoints) == 2 and (found.rows or found.losses)
