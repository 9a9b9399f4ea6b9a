"""Presets on bare sd-scripts: what the script gets, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.presets.document import Preset
from kohya_ext.presets.launch_command import LaunchCommands, Surroundings
from kohya_ext.presets.project import Project
from kohya_ext.presets.without_gui import commands_without_gui
from tests.presets.toml_release import RELEASE

WHERE = Surroundings("/sd-scripts", "/env/bin/python", "/env/bin/accelerate", "now")
LORA: dict[str, Any] = {
    "sdxl": True, "LoRA_type": "Standard", "conv_dim": 1, "network_dim": 32, "text_encoder_lr": 1.0, "unet_lr": 0,
    "optimizer": "AdaCoor", "optimizer_args": "eps=1e-8 auto_lr=True", "max_resolution": "1024,1024", "seed": 0,
    "mixed_precision": "bf16", "max_grad_norm": 0, "additional_parameters": "--enable_ema --ema_decay=0.9995",
    "sdxl_cache_text_encoder_outputs": False, "epoch": 1, "max_timestep": 1000, "logging_dir": "/mine",
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "images" / "10_cat"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    return Project(folder.parent, "model.safetensors", tmp_path / "out", "mine")


def launch(values: dict[str, Any], project: Project, *, tab: Any = "lora", **about: Any) -> LaunchCommands:
    return commands_without_gui(Preset("mine", tab, values, about), RELEASE, project, WHERE)


def test_a_lora(project: Project) -> None:
    found = launch(LORA, project)
    (file, settings), *others = found.toml.items()
    assert not others
    out = project.output.resolve()
    assert found.training == [
        "/env/bin/accelerate", "launch", "--mixed_precision", "bf16", "--num_cpu_threads_per_process", "2",
        "/sd-scripts/sdxl_train_network.py", "--config_file", file, "--enable_ema", "--ema_decay=0.9995",
    ]  # fmt: skip
    assert Path(file).parent == out
    assert settings == {
        "network_module": "networks.lora", "network_dim": 32, "text_encoder_lr": [1.0], "optimizer_type": "AdaCoor",
        "optimizer_args": ["eps=1e-8", "auto_lr=True"], "resolution": "1024,1024", "mixed_precision": "bf16",
        "max_grad_norm": 0, "train_data_dir": str(project.data.resolve()), "output_dir": str(out),
        "output_name": "mine", "pretrained_model_name_or_path": "model.safetensors",
    }  # fmt: skip
    assert found.complaints == []


def test_a_fine_tune_takes_folders_with_repeats(project: Project) -> None:
    found = launch({"sdxl_checkbox": True, "dataset_repeats": "2", "create_buckets": True}, project, tab="finetune")
    assert next(iter(found.toml.values()))["enable_bucket"] is True
    assert found.complaints == ["dataset_repeats 2: without a GUI, call the folder of images 2_NAME"]


def test_fields_of_the_project(project: Project) -> None:
    given = replace(project, fields={"max_resolution": "512,512", "train_batch_size": "4"})
    settings = next(iter(launch(LORA, given).toml.values()))
    assert (settings["resolution"], settings["train_batch_size"]) == ("512,512", 4)


@pytest.mark.parametrize(
    ("values", "about", "message"),
    [
        ({"LoRA_type": "LyCORIS/LoHa"}, {}, "what LoRA_type = 'LyCORIS/LoHa' means without a GUI is not known"),
        ({"lr_warmup": 10}, {}, "what lr_warmup = 10 means"),
        ({"fused_backward_pass": True}, {"requires": ["fused_backward_pass"]}, "needs --fused_backward_pass"),
        ({"network_dim": "many"}, {}, "not a value of --network_dim"),
    ],
)
def test_what_is_refused(values: dict[str, Any], about: dict[str, Any], message: str, project: Project) -> None:
    with pytest.raises(UnsupportedError, match=message):
        launch({**LORA, **values}, project, **about)


@pytest.mark.parametrize("field", ["no_such=1", "network_dim=many"])
def test_a_wrong_field(field: str, project: Project) -> None:
    key, _, value = field.partition("=")
    with pytest.raises(UsageError, match=key):
        launch(LORA, replace(project, fields={key: value}))


def test_images_outside_of_such_a_folder(project: Project, tmp_path: Path) -> None:
    flat = replace(project, data=tmp_path / "images" / "10_cat")
    with pytest.raises(UsageError):
        launch(LORA, flat)
