from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
from safetensors.torch import load_file

from kohya_ext.core.errors import CONFLICT, DONE, WRONG_USAGE
from kohya_ext.ema.posthoc import ema_profile
from kohya_ext.ema.schedules import Power
from tests.cli.conftest import Ran
from tests.posthoc.runs import STEPS, SavedRun, saved_run, snapshots_of

Run = Callable[..., Ran]


@pytest.fixture
def saved(tmp_path: Path) -> SavedRun:
    (tmp_path / "out").mkdir()
    return saved_run(tmp_path / "out", {"mine": Power(0.1)})


def test_list(saved: SavedRun, run: Run) -> None:
    done = run("ema", "list", saved.folder)
    assert done.code == DONE
    assert "step 10" in done.text and "mine-ema-step00000010.safetensors: EMA, power 0.1" in done.text
    listed = run("ema", "list", saved.folder, "--json").document["snapshots"]
    assert [row["step"] for row in listed] == sorted(row["step"] for row in listed)
    assert {row["kind"] for row in listed} == {"raw weights", "EMA, power 0.1"}


def test_reconstruct(saved: SavedRun, tmp_path: Path, run: Run) -> None:
    words = ("ema", "reconstruct", saved.folder, "--sigma-rel", 0.15, "--out", tmp_path / "wide.safetensors")
    planned = run(*words, "--dry-run")
    assert planned.code == DONE and "expected error" in planned.text and not (tmp_path / "wide.safetensors").exists()
    done = run(*words, "--json")
    assert done.code == DONE
    [row] = done.document["files"]
    error = saved.distance(load_file(tmp_path / "wide.safetensors"), ema_profile(Power(0.15), STEPS, STEPS))
    assert error <= row["bound"] and row["error"] < 0.05 and row["sigma_rel"] == 0.15
    again = run(*words)
    assert again.code == CONFLICT and "--overwrite" in again.errors
    assert run(*words, "--overwrite").code == DONE


def test_sweep(saved: SavedRun, tmp_path: Path, run: Run) -> None:
    words = ("ema", "sweep", saved.folder, "--sigma-rel", "0.06:0.24:3", "--out", tmp_path / "lengths")
    assert run(*words, "--dry-run").code == DONE
    missing = run(*words)
    assert missing.code == WRONG_USAGE and "create it first" in missing.errors
    (tmp_path / "lengths").mkdir()
    assert run(*words).code == DONE
    names = sorted(path.name for path in (tmp_path / "lengths").iterdir())
    assert names == ["mine-sigma0.060.safetensors", "mine-sigma0.120.safetensors", "mine-sigma0.240.safetensors"]


def test_merge_takes_raw_weights_alone(saved: SavedRun, tmp_path: Path, run: Run) -> None:
    words = ("ema", "merge", saved.folder, "--sigma-rel", 0.25, "--out", tmp_path / "merged.safetensors")
    done = run(*words, "--json")
    assert done.code == DONE
    error = saved.distance(load_file(tmp_path / "merged.safetensors"), ema_profile(Power(0.25), STEPS, STEPS))
    assert error <= done.document["files"][0]["bound"]
    for path in saved.folder.glob("mine-ema*"):
        path.unlink()
    words = ("ema", "reconstruct", saved.folder, "--sigma-rel", 0.25, "--out", tmp_path / "new.safetensors")
    refused = run(*words)
    assert refused.code == WRONG_USAGE and "kohya-ext ema merge" in refused.errors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_snapshots(saved: SavedRun, tmp_path: Path, run: Run, dtype: str) -> None:
    folder = snapshots_of(saved, "mine", Power(0.05), Power(0.1), every=20, dtype=dtype)
    listed = run("ema", "list", saved.folder).text
    held = dtype if dtype == "float32" else f"{dtype} difference"
    assert f"ema2-step00000020.safetensors: EMA, power 0.1, snapshot ({held})" in listed
    assert "mine-step00000010.safetensors: raw weights" in listed
    for place in (saved.folder, folder):  # either is enough
        words = ("ema", "reconstruct", place, "--sigma-rel", 0.15, "--out", tmp_path / "new.safetensors", "--overwrite")
        done = run(*words, "--json")
        assert done.code == DONE
        [row] = done.document["files"]
        error = saved.distance(load_file(tmp_path / "new.safetensors"), ema_profile(Power(0.15), STEPS, STEPS))
        assert error <= row["bound"] + 2 * row["rounding"] and row["error"] < 0.02
    said = run(*words).text
    assert "from 16 files up to step 160" in said
    (tmp_path / "lengths").mkdir()
    swept = run("ema", "sweep", folder, "--sigma-rel", "0.06:0.2:3", "--out", tmp_path / "lengths")
    assert swept.code == DONE and len(list((tmp_path / "lengths").iterdir())) == 3


def test_snapshots_without_what_goes_with_them(saved: SavedRun, tmp_path: Path, run: Run) -> None:
    folder = snapshots_of(saved, "mine", Power(0.1), every=20, dtype="float16")
    words = ("ema", "reconstruct", saved.folder, "--sigma-rel", 0.15, "--out", tmp_path / "new.safetensors")
    for path, says in (
        (folder / "reference.safetensors", "which is not there"),
        (folder / "saved.safetensors", "no EMA was saved in this run"),
        (saved.folder / "mine-ema.safetensors", "the model file with the EMA of step 160"),
    ):
        kept = path.read_bytes()
        path.unlink()
        refused = run(*words)
        assert refused.code == WRONG_USAGE and says in refused.errors
        path.write_bytes(kept)
    named = run("ema", "list", folder / "saved.safetensors")
    assert named.code == WRONG_USAGE and "name the folder" in named.errors
    assert run(*words).code == DONE
    merged = run("ema", "merge", saved.folder, "--sigma-rel", 0.25, "--out", tmp_path / "merged.safetensors")
    assert merged.code == DONE and "from 16 files" in merged.text  # of the raw ones


def test_what_would_be_far_off_is_refused_unless_forced(saved: SavedRun, tmp_path: Path, run: Run) -> None:
    words = ("ema", "merge", saved.folder, "--sigma-rel", 0.02, "--out", tmp_path / "narrow.safetensors")
    refused = run(*words)
    assert refused.code == CONFLICT and "--force" in refused.errors and "Nothing was written" in refused.errors
    assert not (tmp_path / "narrow.safetensors").exists()
    assert run(*words, "--force").code == DONE


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sweep", "--sigma-rel", "0.1"), "FROM:TO:COUNT"),
        (("sweep", "--sigma-rel", "0.1:0.05:3"), "the smaller first"),
        (("sweep", "--sigma-rel", "0.1:nan:3"), "the smaller first"),
        (("sweep", "--sigma-rel", "0.1:0.2:1000"), "2 to 64 files"),
        (("reconstruct", "--sigma-rel", "0.5"), "sigma_rel must lie"),
        (("reconstruct", "--decay", "1"), "decay must"),
        (("reconstruct", "--sigma-rel", "0.1", "--step", "0"), "--step 0"),
        (("reconstruct", "--sigma-rel", "0.1", "--name", "other"), "no file of a run called other"),
    ],
)
def test_what_makes_no_sense_is_refused(
    saved: SavedRun, tmp_path: Path, run: Run, words: tuple[str, ...], says: str
) -> None:
    out = tmp_path if words[0] == "sweep" else tmp_path / "new.safetensors"
    refused = run("ema", *words, saved.folder, "--out", out)
    assert refused.code == WRONG_USAGE and says in refused.errors
