"""Every file Kohya saves is saved from the EMA too: whole, marked, rotated, and the raw one untouched."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import safetensors.torch
import torch
from safetensors import safe_open

from kohya_ext.runtime import checkpoints, options, sampling, savers
from kohya_ext.runtime.ema_outputs import Twins
from tests.runtime.conftest import Run, close, same

Begin = Callable[..., Run]


def save_on_epoch_end_or_stepwise_common(
    args: Any, on_epoch_end: bool, accelerator: Any, save_stable_diffusion_format: bool, use_safetensors: bool,
    epoch: int, num_train_epochs: int, global_step: int, sd_saver: Callable[..., None],
    diffusers_saver: Callable[..., None],
) -> None:  # fmt: skip
    """A saver of ours with upstream's parameters and naming."""
    default = "epoch" if on_epoch_end else "at"
    number = f"-{epoch + 1:06d}" if on_epoch_end else f"-step{global_step:08d}"
    path = Path(args.output_dir, (args.output_name or default) + number)
    if save_stable_diffusion_format:
        sd_saver(f"{path}.safetensors", epoch, global_step)
    else:
        diffusers_saver(str(path))
    if args.save_state:
        accelerator.append(args.output_name)


def save_full(run: Run, *, step: int, diffusers: bool = False, broken: bool = False) -> list[Any]:
    """What a training script does: one call of the (wrapped) saver, with closures over its models."""
    states: list[Any] = []

    def sd_saver(file: str, epoch: int, global_step: int) -> None:
        safetensors.torch.save_file(run.weights(), file, {"format": "pt"})
        if broken:
            raise OSError(28, "No space left on device")

    def diffusers_saver(folder: str) -> None:
        Path(folder).mkdir(parents=True)
        safetensors.torch.save_file(run.weights(), str(Path(folder, "unet.safetensors")), {"format": "pt"})

    checkpoints.save_during_training(
        save_on_epoch_end_or_stepwise_common, run.args, False, states, not diffusers, True, 0, 1, step, sd_saver,
        diffusers_saver,
    )  # fmt: skip
    return states


def load(path: Path) -> dict[str, Any]:
    return safetensors.torch.load_file(str(path))


def metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return file.metadata()


def test_a_full_fine_tune_saves_both(begin: Begin, tmp_path: Path) -> None:
    run = begin()
    run.step(3)
    run.args.save_state = True
    states = save_full(run, step=3)
    assert same(load(tmp_path / "dog-step00000003.safetensors"), run.history[-1])
    assert close(load(tmp_path / "dog-ema-step00000003.safetensors"), run.expected())
    assert metadata(tmp_path / "dog-ema-step00000003.safetensors")["kohya_ext_ema_steps"] == "3"
    assert "kohya_ext_ema_steps" not in metadata(tmp_path / "dog-step00000003.safetensors")
    assert states == ["dog"], "the state is saved once, by the raw call"
    assert same(run.weights(), run.history[-1])


def test_a_folder_in_diffusers_form(begin: Begin, tmp_path: Path) -> None:
    run = begin()
    run.step(2)
    save_full(run, step=2, diffusers=True)
    assert close(load(tmp_path / "dog-ema-step00000002" / "unet.safetensors"), run.expected())


def test_only_the_average(begin: Begin, tmp_path: Path) -> None:
    run = begin(ema_save="only")
    run.step(3)
    save_full(run, step=3)
    assert [p.name for p in tmp_path.iterdir()] == ["dog-step00000003.safetensors"]
    assert close(load(tmp_path / "dog-step00000003.safetensors"), run.expected())


def test_before_there_is_an_average_the_raw_weights_are_saved(begin: Begin, tmp_path: Path) -> None:
    run = begin(ema_start_step=5)
    run.step(1)
    save_full(run, step=1)
    assert [p.name for p in tmp_path.iterdir()] == ["dog-step00000001.safetensors"]


def test_a_save_that_fails_leaves_no_half_file_and_the_raw_weights(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(ema_save="only")
    run.step(3)
    save_full(run, step=3, broken=True)
    assert "No space" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert same(run.weights(), run.history[-1])


def test_writers_are_their_own_again_after_a_save(begin: Begin) -> None:
    writer = safetensors.torch.save_file
    run = begin()
    run.step()
    save_full(run, step=1)
    assert safetensors.torch.save_file is writer


class Network(torch.nn.Linear):
    """A LoRA network as upstream's scripts know it."""

    def save_weights(self, file: str, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        tensors = {name: p.detach().clone().to(dtype) for name, p in self.named_parameters()}
        metadata["sshs_model_hash"] = "computed here"
        safetensors.torch.save_file(tensors, file, metadata)


def prepared(run: Run) -> Network:
    network = Network(3, 2)
    network.weight, network.bias = run.model.weight, run.model.bias
    settings = options.read(run.args)
    assert settings is not None
    twins = Twins(run.args, settings)
    savers.wrap_saver_of_network(network, twins)
    savers.wrap_saver_of_network(network, twins)
    return network


def test_a_lora_run_saves_both(begin: Begin, tmp_path: Path) -> None:
    run = begin()
    network = prepared(run)
    run.step(3)
    network.save_weights(str(tmp_path / "dog.safetensors"), torch.float32, {"ss_steps": "3"})
    assert same(load(tmp_path / "dog.safetensors"), run.history[-1])
    assert close(load(tmp_path / "dog-ema.safetensors"), run.expected())
    assert metadata(tmp_path / "dog.safetensors") == {"ss_steps": "3", "sshs_model_hash": "computed here"}
    assert metadata(tmp_path / "dog-ema.safetensors")["ss_steps"] == "3"
    assert "save_weights" not in network.state_dict()


def test_lora_files_of_the_average_are_rotated_with_their_raw_twins(begin: Begin, tmp_path: Path) -> None:
    """The scripts delete an old raw file themselves, after the save of the one that outlives it."""
    run = begin(save_every_n_epochs=1, save_last_n_epochs=1)
    network = prepared(run)
    for epoch in (1, 2, 3):
        run.step()
        network.save_weights(str(tmp_path / f"dog-{epoch:06d}.safetensors"), torch.float32, {})
        if epoch > 1:
            (tmp_path / f"dog-{epoch - 1:06d}.safetensors").unlink()
    network.save_weights(str(tmp_path / "dog.safetensors"), torch.float32, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "dog-000003.safetensors", "dog-ema-000003.safetensors", "dog-ema.safetensors", "dog.safetensors",
    ]  # fmt: skip


def test_files_from_before_a_resume_are_rotated_too(begin: Begin, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        for name in ("dog", "dog-ema", "cat-ema"):
            (tmp_path / f"{name}-step{step:08d}.safetensors").touch()
    run = begin(save_every_n_steps=10, save_last_n_steps=20)
    network = prepared(run)
    run.step()
    network.save_weights(str(tmp_path / "dog-step00000040.safetensors"), torch.float32, {})
    left = sorted(p.stem for p in tmp_path.glob("dog-ema-*"))
    assert left == [f"dog-ema-step{step:08d}" for step in (20, 30, 40)]
    assert len(list(tmp_path.glob("cat-ema-*"))) == 3


def test_without_rotation_no_file_of_the_average_is_ever_removed(begin: Begin, tmp_path: Path) -> None:
    """Somebody moves raw files to another disk while the run goes on."""
    run = begin()
    network = prepared(run)
    run.step()
    network.save_weights(str(tmp_path / "dog-000001.safetensors"), torch.float32, {})
    (tmp_path / "dog-000001.safetensors").rename(tmp_path / "moved.safetensors")
    network.save_weights(str(tmp_path / "dog.safetensors"), torch.float32, {})
    assert (tmp_path / "dog-ema-000001.safetensors").exists()


def test_what_the_script_uploads_is_uploaded_from_the_average_too(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[str] = []
    module = types.ModuleType("library.huggingface_util")
    module.upload = lambda args, source, destination: uploaded.append(destination)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "library.huggingface_util", module)
    run = begin(huggingface_repo_id="me/dog")
    network = prepared(run)
    run.step()
    network.save_weights(str(tmp_path / "dog.safetensors"), torch.float32, {})
    assert uploaded == ["/dog-ema.safetensors"]


def test_only_the_average_before_it_has_begun_says_so(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(ema_save="only", ema_start_step=5)
    run.step(1)
    save_full(run, step=1)
    assert "raw weights" in capsys.readouterr().out


def sample(run: Run, drawn: list[Any], *, epoch: int | None, steps: int) -> None:
    def sample_images_common(pipe_class: Any, accelerator: Any, args: Any, epoch: Any, steps: int, device: Any) -> None:
        drawn.append((args.output_name, run.weights()))

    run.args.__dict__.update(sample_every_n_steps=2, sample_every_n_epochs=None, sample_at_first=False)
    sampling.sample_images(sample_images_common, None, None, run.args, epoch, steps, device=None)


def test_samples_from_both_lie_beside_each_other(begin: Begin) -> None:
    run = begin(ema_sample="both")
    run.step(2)
    drawn: list[Any] = []
    sample(run, drawn, epoch=None, steps=2)
    assert [name for name, _ in drawn] == ["dog", "dog-ema"]
    assert same(drawn[0][1], run.history[-1])
    assert close(drawn[1][1], run.expected())
    assert same(run.weights(), run.history[-1])


def test_weights_stay_where_they_are_when_no_sample_is_due(begin: Begin) -> None:
    run = begin(ema_sample="ema")
    run.step(3)
    drawn: list[Any] = []
    sample(run, drawn, epoch=None, steps=3)
    assert drawn == [("dog", drawn[0][1])]
    assert same(drawn[0][1], run.history[-1])


def test_due_is_upstreams_own_test() -> None:
    args = argparse.Namespace(sample_every_n_steps=2, sample_every_n_epochs=None, sample_at_first=True)
    assert [sampling._due(args, None, step) for step in (0, 1, 2)] == [True, False, True]
    assert not sampling._due(args, 1, 2)
    args = argparse.Namespace(sample_every_n_steps=None, sample_every_n_epochs=2)
    assert [sampling._due(args, epoch, 5) for epoch in (None, 1, 2)] == [False, False, True]
    assert not sampling._due(args, 1, 0)
