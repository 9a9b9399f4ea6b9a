"""Presets on bare sd-scripts say to the training script what the GUI of kohya_ss v26 says to the same script."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.presets.command import commands
from kohya_ext.presets.document import Preset, bundled
from kohya_ext.presets.launch_command import Surroundings
from kohya_ext.presets.project import Project
from kohya_ext.presets.release import read_release, read_training
from kohya_ext.presets.script_run import script_run
from tests.upstream.trees import V0_11_1, export_kohya, export_sd_scripts

pytestmark = pytest.mark.upstream

# Folders, the form's own way to the captions, and fields of the form that these scripts never read.
NOT_COMPARED = {
    "train_data_dir", "in_json", "dataset_repeats", "enable_bucket", "output_dir", "output_name", "config_file",
    "sample_prompts", "sample_sampler", "dynamo_backend", "wandb_run_name",
    "max_train_steps",  # of which max_train_epochs takes the place
    "multires_noise_discount", "persistent_data_loader_workers",
    "max_data_loader_n_workers",  # 0 in the form: it loads in the training process
}  # fmt: skip


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    missing = [name for name in ("KOHYA_SS_GIT", "SD_SCRIPTS_GIT", "SD_SCRIPTS_FORK_GIT") if not os.environ.get(name)]
    if missing:
        pytest.skip(f"needs real trees: set {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("trees")
    (folder / "kohya_ss").mkdir()
    (folder / "sd-scripts").mkdir()
    return export_kohya("v26.0.0", folder / "kohya_ss"), export_sd_scripts(V0_11_1, folder / "sd-scripts")


@pytest.mark.parametrize("preset", list(bundled()), ids=lambda preset: preset.name)
def test_the_script_gets_what_the_gui_gives_it(preset: Preset, trees: tuple[Path, Path], tmp_path: Path) -> None:
    with_gui, bare = trees
    images = tmp_path / "images" / "1_cat"
    images.mkdir(parents=True)
    for folder in (images, images.parent):
        (folder / "a.png").touch()
    project = Project(images.parent, "model.safetensors", tmp_path / "out", "mine")

    def namespace(tree: Path) -> dict[str, Any]:
        checkout = describe(tree)
        where = Surroundings(str(checkout.root), "/env/bin/python", "/env/bin/accelerate", "now")
        if checkout.gui_root is None:
            release = read_training(checkout, tab=preset.tab, patched=True, xformers=True)
        else:
            release = read_release(checkout, preset.tab, patched=True, xformers=True)
        run = script_run(commands(preset, release, checkout, project, where), replace(release, patched=True))
        assert run is not None
        return {name: value for name, value in run.namespace().items() if name not in NOT_COMPARED}

    ours, theirs = namespace(bare), namespace(with_gui)
    assert {name: (ours[name], value) for name, value in theirs.items() if not same(ours[name], value)} == {}


def same(ours: Any, theirs: Any) -> bool:
    """Nothing, zero and an empty list leave a setting open alike; one rate is that of all text encoders."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return set(ours) == set(theirs)
    return bool(ours == theirs or (not ours and not theirs))
