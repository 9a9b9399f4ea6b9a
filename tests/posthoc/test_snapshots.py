"""Which EMA a file holds, and of which step: told by the file, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kohya_ext.core.errors import UsageError
from kohya_ext.ema.schedules import Power
from kohya_ext.posthoc.reconstruction import plan, target_of
from kohya_ext.posthoc.snapshots import read_run
from kohya_ext.spec.outputs import BEST_METADATA
from tests.posthoc.runs import metadata

WEIGHTS = {"a": torch.zeros(3)}


def file(path: Path, about: dict[str, str] | None = None, weights: dict[str, torch.Tensor] | None = None) -> Path:
    save_file(WEIGHTS if weights is None else weights, str(path), about or {})
    return path


def test_steps_come_from_the_file_or_from_another_of_its_epoch(tmp_path: Path) -> None:
    file(tmp_path / "run-ema-000001.safetensors", metadata(Power(0.1), 30))
    file(tmp_path / "run-000001.safetensors")
    file(tmp_path / "run-000002.safetensors")  # its EMA was not kept
    file(tmp_path / "run-ema.safetensors", metadata(Power(0.1), 90))
    file(tmp_path / "run.safetensors")
    run = read_run([tmp_path])
    assert [(one.path.stem, one.step) for one in run.snapshots] == [
        ("run-000001", 30),
        ("run-ema-000001", 30),
        ("run-000002", 60),
        ("run", 90),
        ("run-ema", 90),
    ]


def test_the_copy_of_the_best_checkpoint_is_not_a_run(tmp_path: Path) -> None:
    file(tmp_path / "run-step00000010.safetensors")
    file(tmp_path / "run-step00000020.safetensors")
    file(tmp_path / "run-best.safetensors", {BEST_METADATA + "loss": "0.5", BEST_METADATA + "step": "10"})
    assert [one.step for one in read_run([tmp_path]).snapshots] == [10, 20]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schedule", "cubic", "unknown schedule"),
        ("sigma_rel", "7", "sigma_rel must lie"),
        ("sigma_rel", "nan", "sigma_rel must lie"),
        ("steps", "many", "make no sense"),
        ("steps", "0", "make no sense"),
        ("steps", "9" * 30, "make no sense"),
        ("update_every", "0", "make no sense"),
        ("start_step", "-1", "make no sense"),
        ("steps", None, "does not say the steps"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(tmp_path: Path, key: str, value: str | None, says: str) -> None:
    about = metadata(Power(0.1), 30)
    if value is None:
        del about["kohya_ext_ema_" + key]
    else:
        about["kohya_ext_ema_" + key] = value
    with pytest.raises(UsageError, match=says):
        read_run([file(tmp_path / "run-ema.safetensors", about)])


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    one = file(tmp_path / "run-ema.safetensors", metadata(Power(0.1), 30))
    with pytest.raises(UsageError, match="several runs: other, run"):
        read_run([one, file(tmp_path / "other-ema.safetensors", metadata(Power(0.1), 30))])
    assert len(read_run([tmp_path], name="other").snapshots) == 1
    with pytest.raises(UsageError, match="no file of a run called third"):
        read_run([tmp_path], name="third")
    wide = file(tmp_path / "run-ema-000001.safetensors", metadata(Power(0.1), 10), {"a": torch.zeros(4)})
    with pytest.raises(UsageError, match="a differs"):
        read_run([one, wide])
    with pytest.raises(UsageError, match="does not say which"):
        read_run([file(tmp_path / "run-ema-000002.safetensors")])
    with pytest.raises(UsageError, match="does not exist"):
        read_run([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="contains no"):
        read_run([tmp_path / "empty"])


def test_too_little_to_mix_and_too_coarse(tmp_path: Path) -> None:
    run = read_run([file(tmp_path / "run-ema.safetensors", metadata(Power(0.1), 30))])
    with pytest.raises(UsageError, match="takes at least two"):
        plan(run, target_of(run, sigma_rel=0.1))
    with pytest.raises(UsageError, match="--step 31"):
        target_of(run, sigma_rel=0.1, step=31)
    with pytest.raises(UsageError, match="sigma_rel must lie"):
        target_of(run, sigma_rel=0.4)
    with pytest.raises(UsageError, match="does not say after"):
        read_run([file(tmp_path / "final.safetensors")])
    tiny = {"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}
    coarse = [
        file(tmp_path / f"c-ema{end}.safetensors", metadata(Power(0.1), steps), tiny)
        for end, steps in (("-000001", 10), ("", 20))
    ]
    run = read_run(coarse)
    with pytest.raises(UsageError, match="F8_E4M3: too coarse"):
        plan(run, target_of(run, sigma_rel=0.1))
