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

from kohya_ext.presets.commandline import as_toml
from kohya_ext.presets.convert import shown_at_start
from kohya_ext.presets.document import bundled
from kohya_ext.presets.fit import fit
from kohya_ext.presets.rehearsal import Surroundings, rehearse
from kohya_ext.presets.schema import read_schema
from kohya_ext.presets.sources import FolderSources
from tests.upstream.presets_trees import export_python

pytestmark = pytest.mark.upstream

REVISIONS = ("v21.8.0", "v21.8.4", "v22.3.1", "v22.6.2", "v23.0.15", "v24.1.7", "v25.2.1", "v26.0.0", "master")
RECORDER = Path(__file__).with_name("recorded_training.py")
STAMP = re.compile(r"\d{8}-\d{6}")


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_commands_are_those_of_the_real_gui(revision: str, tmp_path: Path) -> None:
    tree = export_python(revision, tmp_path / "kohya_ss")
    data, model = tmp_path / "pictures", tmp_path / "base model.safetensors"
    data.mkdir()
    for name in ("a.png", "b.jpg", "a.txt"):
        (data / name).touch()
    model.touch()
    accelerate = tmp_path / "bin" / "accelerate"
    accelerate.parent.mkdir()
    accelerate.write_text("#!/bin/sh\n")
    accelerate.chmod(0o755)
    schema = read_schema(FolderSources(tree), "finetune", patched=True)
    assert schema is not None
    for preset in bundled():
        if "fused_backward_pass" in preset.requires and "fused_backward_pass" not in schema.fields:
            continue
        output = tmp_path / f"out {preset.name}"
        output.mkdir()
        form: dict[str, Any] = {}
        for key, one in schema.fields.items():
            start = shown_at_start(one)
            form[key] = start.value if start.usable else ""
        form |= fit(preset, schema).values
        form |= {"pretrained_model_name_or_path": str(model), "image_folder": str(data), "train_dir": str(output)}
        form |= {"output_dir": str(output), "output_name": "mine", "logging_dir": ""}
        truth = recorded(tree, form, accelerate.parent)
        where = Surroundings(str(tree), sys.executable, str(accelerate), "20260101-000000")
        ours = rehearse(FolderSources(tree), "finetune", form, {str(data): os.listdir(data)}, where)  # noqa: PTH208
        assert [*ours.preparation, ours.training] == unstamped(truth["commands"])
        files = {name: toml.loads(as_toml(settings)) for name, settings in ours.toml.items()}
        for name, settings in unstamped(truth["toml"]).items():
            assert sorted(files.pop(name).items()) == sorted(settings.items())
        assert files == {}
        assert len(ours.preparation) == 2


def recorded(tree: Path, form: dict[str, Any], programs: Path) -> dict[str, Any]:
    environ = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(RECORDER), str(tree)]
    done = subprocess.run(command, input=json.dumps(form), capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    truth: dict[str, Any] = json.loads(done.stdout)
    return truth


def unstamped(value: Any) -> Any:
    """The same with the time in file names replaced by the one we give."""
    return json.loads(STAMP.sub("20260101-000000", json.dumps(value)))
