"""The copy of the best checkpoint, whichever of save and validation comes first."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
from safetensors.torch import load_file, save_file  # noqa: E402

from kohya_ext.runtime.best import Best  # noqa: E402
from kohya_ext.runtime.run import run  # noqa: E402
from kohya_ext.tensors.header import read_header  # noqa: E402


class Course:
    """A run: `step` makes optimizer steps, `save` a checkpoint of the weights as they are."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.steps = folder, 0
        given = {"output_dir": str(folder), "output_name": "dog", "save_every_n_epochs": 1, "resume": None, **settings}
        self.best = Best(argparse.Namespace(**given), 0, lambda: self.steps)

    def save(self, weights: str = "raw", name: str = "", suffix: str = ".safetensors") -> None:
        path = self.folder / f"dog{name}{suffix}"

        def write(file: str) -> None:
            save_file({"a": torch.full((3,), float(self.steps))}, file, {"ss_seed": "1"})

        self.best.noting(write, weights)(str(path))

    def measure(self, **losses: float) -> None:
        self.best.measured(losses, self.steps)

    def kept(self) -> float | None:
        path = self.folder / "dog-best.safetensors"
        return float(load_file(path)["a"][0]) if path.exists() else None


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Course]:
    monkeypatch.setattr(run, "averages", [])
    return lambda **settings: Course(tmp_path, **settings)


def test_after_an_epoch_and_after_a_step(course: Callable[..., Course], capsys: pytest.CaptureFixture[str]) -> None:
    one = course()
    one.measure(raw=2.0)
    one.steps = 3
    one.measure(raw=1.0)
    assert one.kept() is None, "there is no file of these weights yet"
    one.save(name="-000001")
    assert one.kept() == 3
    one.steps = 4
    one.save(name="-step00000004")
    assert one.kept() == 3
    one.measure(raw=0.5)
    assert one.kept() == 4
    one.steps = 6
    one.save()
    one.measure(raw=0.7)
    assert one.kept() == 4
    about = read_header(one.folder / "dog-best.safetensors").metadata
    assert about["ss_seed"] == "1" and about["kohya_ext_best_step"] == "4" and about["kohya_ext_best_loss"] == "0.5"
    assert about["kohya_ext_best_weights"] == "raw" and about["kohya_ext_best_file"] == "dog-step00000004.safetensors"
    assert "dog-best.safetensors" in capsys.readouterr().out


def test_a_save_of_other_weights_is_not_taken(course: Callable[..., Course]) -> None:
    one = course()
    one.steps = 2
    one.save()
    one.steps = 3
    one.measure(raw=0.1)
    assert one.kept() is None


def test_the_ema_where_it_is_better(course: Callable[..., Course]) -> None:
    one = course()
    one.steps = 1
    one.measure(raw=1.0, ema=0.9)
    one.save("raw")
    assert one.kept() is None, "the EMA comes next"
    one.save("ema", "-ema")
    assert one.kept() == 1
    assert read_header(one.folder / "dog-best.safetensors").metadata["kohya_ext_best_weights"] == "ema"
    one.steps = 2
    one.measure(raw=math.nan, ema=math.nan)
    one.save("raw")
    one.save("ema", "-ema")
    assert one.kept() == 1


def test_a_resumed_run_goes_on_from_the_best(course: Callable[..., Course]) -> None:
    one = course()
    one.steps = 1
    one.measure(raw=0.5)
    one.save()
    again = course(resume="state")
    again.steps = 9
    again.measure(raw=0.6)
    again.save()
    assert one.kept() == 1
    fresh = course()
    fresh.steps = 9
    fresh.measure(raw=0.6)
    fresh.save()
    assert one.kept() == 9


def test_a_checkpoint_whose_validation_was_cut_is_chosen_after_the_resume(course: Callable[..., Course]) -> None:
    """The state tells which files were saved of its weights: what is validated after the resume belongs to them."""
    one = course()
    one.steps = 3
    one.save("raw", "-000001")
    one.save("ema", "-ema-000001")
    files = one.best.files()
    assert files == {"raw": "dog-000001.safetensors", "ema": "dog-ema-000001.safetensors"}
    again = course(resume="state")
    again.best.continue_from({**files, "ema2": "gone.safetensors"})
    again.measure(raw=0.6, ema=0.5)
    assert again.kept() == 3
    about = read_header(one.folder / "dog-best.safetensors").metadata
    assert about["kohya_ext_best_file"] == "dog-ema-000001.safetensors"
    again.steps = 1
    assert again.best.files() == {}, "they are files of other weights by now"
    again.measure(raw=0.1, ema=0.2)
    assert again.kept() == 3


def test_files_outside_of_the_output_folder_are_not_taken(course: Callable[..., Course], tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path.parent / "other.safetensors")
    one = course(resume="state")
    one.best.continue_from({"raw": "../other.safetensors"})
    one.measure(raw=0.1)
    assert one.kept() is None


def test_no_half_copy_and_no_end_of_the_run(
    course: Callable[..., Course], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = course()
    one.steps = 1
    one.measure(raw=0.5)
    monkeypatch.setattr("shutil.copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    one.save()
    assert sorted(path.name for path in one.folder.iterdir()) == ["dog.safetensors"]
    assert "could not be copied" in capsys.readouterr().err


def test_folders_and_pickles(course: Callable[..., Course]) -> None:
    one = course()
    one.steps = 1
    one.measure(raw=0.5)

    def write_folder(file: str) -> None:
        (Path(file) / "unet").mkdir(parents=True)
        (Path(file) / "unet" / "config.json").write_text("{}")

    one.best.noting(write_folder, "raw")(str(one.folder / "dog-000001"))
    assert (one.folder / "dog-best" / "unet" / "config.json").is_file()
    one.steps = 2
    one.measure(raw=0.4)
    one.best.noting(lambda file: Path(file).write_bytes(b"x"), "raw")(str(one.folder / "dog.ckpt"))
    assert (one.folder / "dog-best.ckpt").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("settings", "every", "works"),
    [
        ({}, 0, True),
        ({"save_every_n_epochs": None}, 0, False),
        ({"save_every_n_steps": 100}, 0, False),
        ({"save_every_n_steps": 100}, 50, True),
        ({"save_every_n_epochs": None, "save_every_n_steps": 100}, 30, False),
    ],
)
def test_each_checkpoint_is_validated(tmp_path: Path, settings: dict[str, Any], every: int, works: bool) -> None:
    args = argparse.Namespace(**{"output_dir": str(tmp_path), "save_every_n_epochs": 1, **settings})
    if works:
        Best(args, every, lambda: 0)
        return
    with pytest.raises(SystemExit):
        Best(args, every, lambda: 0)


def test_a_network(course: Callable[..., Course]) -> None:
    one = course()

    class Network:
        def save_weights(self, file: str, dtype: Any, metadata: Any) -> None:
            save_file({"a": torch.full((3,), 7.0)}, file)

    network = Network()
    one.best.watch(network)
    one.steps = 1
    one.measure(raw=0.5)
    network.save_weights(str(one.folder / "dog-000001.safetensors"), None, None)
    assert one.kept() == 7
