"""`presets command` against the truth: the real `train_model` called with what it would run recorded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toml

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.command import as_toml
from kohya_ext.presets.convert import shown_at_start
from kohya_ext.presets.document import Preset, bundled
from kohya_ext.presets.fit import fit
from kohya_ext.presets.launch_command import Surroundings, launch_commands
from kohya_ext.presets.project import Project
from kohya_ext.presets.schema import Schema, Tab, read_schema
from kohya_ext.pysource.sources import FolderSources
from tests.upstream.presets_trees import export_python

pytestmark = pytest.mark.upstream

REVISIONS = ("v21.8.0", "v21.8.4", "v22.3.1", "v22.6.2", "v23.0.15", "v24.1.7", "v25.2.1", "v26.0.0", "master")
RECORDER = Path(__file__).with_name("recorded_training.py")
STAMP = re.compile(r"\d{8}-\d{6}")


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_commands_are_those_of_the_real_gui(revision: str, tmp_path: Path) -> None:
    tree = export_python(revision, tmp_path / "kohya_ss")
    data, model = tmp_path / "images", tmp_path / "base model.safetensors"
    data.mkdir()
    for name in ("a.png", "b.jpg", "a.txt"):
        (data / name).touch()
    model.touch()
    accelerate = program(tmp_path)
    schema = read_schema(FolderSources(tree), "finetune", patched=True)
    assert schema is not None
    for preset in bundled():
        if preset.tab != "finetune":
            continue
        if "fused_backward_pass" in preset.requires and "fused_backward_pass" not in schema.fields:
            continue
        output = tmp_path / f"out {preset.name}"
        output.mkdir()
        form = shown(schema) | fit(preset, schema).values
        form |= {"pretrained_model_name_or_path": str(model), "image_folder": str(data), "train_dir": str(output)}
        form |= {"output_dir": str(output), "output_name": "mine", "logging_dir": ""}
        truth = recorded(tree, "finetune", form, accelerate.parent)
        where = Surroundings(str(tree), sys.executable, str(accelerate), "20260101-000000")
        ours = launch_commands(FolderSources(tree), "finetune", form, {str(data): os.listdir(data)}, where)  # noqa: PTH208
        assert [*ours.preparation, ours.training] == unstamped(truth["commands"])
        files = {name: toml.loads(as_toml(settings)) for name, settings in ours.toml.items()}
        for name, settings in unstamped(truth["toml"]).items():
            assert sorted(files.pop(name).items()) == sorted(settings.items())
        assert files == {}
        assert len(ours.preparation) == 2


# What is trained: a key of the tab that says so, and the settings; where the key is missing the release cannot.
TRAINED: dict[str, dict[str, Any]] = {
    "sdxl": {"sdxl": True},
    "v2": {"v2": True, "v_parameterization": True, "max_token_length": 150, "shuffle_caption": True},
    "flux1_checkbox": {"flux1_checkbox": True, "LoRA_type": "Flux1", "mixed_precision": "bf16"},
    "sd3_checkbox": {"sd3_checkbox": True, "mixed_precision": "bf16"},
}
BASIC = {
    "optimizer": "AdamW",
    "learning_rate": 1e-4,
    "text_encoder_lr": 1e-5,
    "unet_lr": 1e-4,
    "network_dim": 16,
    "epoch": 2,
    "max_train_epochs": 2,
    "lr_warmup": 0,
    "lr_scheduler": "constant",
}
# no SDXL in these tabs yet
REFUSED = {("v21.8.0", "dreambooth", "sdxl"), ("v21.8.0", "ti", "sdxl"), ("v21.8.4", "dreambooth", "sdxl")}


@pytest.mark.parametrize("tab", ["lora", "dreambooth", "ti"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_the_commands_of_the_other_tabs_are_those_of_the_real_gui(revision: str, tab: Tab, tmp_path: Path) -> None:
    tree = export_python(revision, tmp_path / "kohya_ss")
    model = tmp_path / "base model.safetensors"
    model.touch()
    accelerate = program(tmp_path)
    project = Project(concepts(tmp_path / "images"), str(model), tmp_path, "mine")
    schema = read_schema(FolderSources(tree), tab, patched=True)
    assert schema is not None
    presets = {preset.name: dict(preset.values) for preset in bundled() if preset.tab == tab}
    presets |= {name: {**BASIC, **values} for name, values in TRAINED.items() if name in schema.fields}
    for name, values in presets.items():
        output = tmp_path / f"out {name}"
        output.mkdir()
        form = shown(schema) | fit(Preset(name, tab, values), schema).values | project.settings(tab)
        form |= {"output_dir": str(output), "token_string": "sks", "init_word": "cat"}
        where = Surroundings(str(tree), sys.executable, str(accelerate), "20260101-000000")
        truth = recorded(tree, tab, form, accelerate.parent)
        if (revision, tab, name) in REFUSED:
            assert truth["commands"] == []
            with pytest.raises(UnsupportedError, match="would not start"):
                launch_commands(FolderSources(tree), tab, form, project.images(tab), where)
            continue
        ours = launch_commands(FolderSources(tree), tab, form, project.images(tab), where)
        assert [*ours.preparation, ours.training] == unstamped(truth["commands"])
        assert {path: toml.loads(as_toml(one)) for path, one in ours.toml.items()} == unstamped(truth["toml"])


def concepts(folder: Path) -> Path:
    """A folder of folders of images, a space in a name."""
    for name in ("3_cat/a.png", "3_cat/b.jpg", "3_cat/a.txt", "10_dog house/c.webp"):
        image = folder / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    return folder


def program(folder: Path) -> Path:
    """A program called accelerate."""
    accelerate = folder / "bin" / "accelerate"
    accelerate.parent.mkdir()
    accelerate.write_text("#!/bin/sh\n")
    accelerate.chmod(0o755)
    return accelerate


def shown(schema: Schema) -> dict[str, Any]:
    """What the form of a fresh GUI holds."""
    starts = {key: shown_at_start(one) for key, one in schema.fields.items()}
    return {key: start.value if start.usable else "" for key, start in starts.items()}


def recorded(tree: Path, tab: str, form: dict[str, Any], programs: Path) -> dict[str, Any]:
    environ = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(RECORDER), str(tree), tab]
    done = subprocess.run(command, input=json.dumps(form), capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    truth: dict[str, Any] = json.loads(done.stdout)
    return truth


def unstamped(value: Any) -> Any:
    """The same with the time in file names replaced by the one we give."""
    return json.loads(STAMP.sub("20260101-000000", json.dumps(value)))
