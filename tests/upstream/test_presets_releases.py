"""Our presets and upstream's own on every real release: fitted, checked, and followed to the training command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.check import check
from kohya_ext.presets.convert import shown_at_start
from kohya_ext.presets.document import Preset, as_preset, bundled, parse_values
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.fit import fit
from kohya_ext.presets.launch_command import Surroundings, launch_commands
from kohya_ext.presets.migration import read_migration
from kohya_ext.presets.release import SCRIPTS, Release, pinned_gradio, refuses_no_upscale, wants_cached_latents
from kohya_ext.presets.schema import TABS, Tab, read_schema
from kohya_ext.pysource.arguments import arguments_of
from kohya_ext.pysource.sources import Sources, TextSources
from tests.upstream.presets_trees import GitSources
from tests.upstream.trees import git, kohya_revisions

pytestmark = pytest.mark.upstream

# settings that the GUIs write into the TOML file and SDXL's script has never taken; it ignores them
IGNORED = {"dynamo_backend", "wandb_run_name", "noise_offset_type", "learning_rate_te"}
NEVER_MERGE = ("v24.1.2", "v24.1.3")  # the GUI builds the command that merges the captions and does not run it
WHERE = Surroundings("/kohya", "/env/bin/python", "/env/bin/accelerate", "20260101-000000")


def training_of(revision: str, gui: GitSources) -> Sources:
    """The training code that a revision has or pins; empty where no repository holds it."""
    pinned = git(os.environ["KOHYA_SS_GIT"], "ls-tree", revision, "sd-scripts").split()
    if not pinned or pinned[0] != "160000":
        return gui
    for name in ("SD_SCRIPTS_GIT", "SD_SCRIPTS_FORK_GIT"):
        with suppress(subprocess.CalledProcessError):
            return GitSources(pinned[2], os.environ[name], (".py",))
    return TextSources({})


def release_of(revision: str, tab: Tab, gui: GitSources, training: Sources) -> Release:
    schema = read_schema(gui, tab, patched=True)
    assert schema is not None
    arguments = arguments_of(training, SCRIPTS[tab][0])
    migration, gradio = read_migration(gui), pinned_gradio(gui)
    assert gradio is not None
    faults = wants_cached_latents(training), refuses_no_upscale(training)
    return Release(revision, schema, migration, arguments, gradio, True, *faults, training)


@pytest.mark.parametrize("revision", kohya_revisions())
def test_our_presets_check_clean_and_give_a_command_or_are_refused_with_the_reason(revision: str) -> None:
    gui = GitSources(revision)
    training = training_of(revision, gui)
    releases: dict[str, Release] = {}
    for preset in bundled():
        release = releases.setdefault(preset.tab, release_of(revision, preset.tab, gui, training))
        try:
            fitted = fit(preset, release.schema, arguments=release.flags, migration=release.migration)
        except UnsupportedError as error:
            assert "fused_backward_pass" in preset.requires
            assert "--fused_backward_pass" in str(error)
            assert "--fused_backward_pass" not in release.flags
            continue
        assert check(as_preset(fitted.values, preset.name, preset.tab), release) == []
        assert "--optimizer_type" in release.flags
        if preset.tab == "finetune":
            result = commanded(gui, release, dict(fitted.values))
            assert preset.values["optimizer"] in str(result.training) + str(result.toml)
            for word in str(preset.values["additional_parameters"]).split():
                assert word in str(result.training)


def commanded(gui: Sources, release: Release, values: dict[str, Any]) -> Any:
    form = {}
    for key, one in release.schema.fields.items():
        start = shown_at_start(one)
        form[key] = start.value if start.usable else ""
    form |= values
    form |= {"pretrained_model_name_or_path": "/m.safetensors", "image_folder": "/data", "train_dir": "/out"}
    form |= {"output_dir": "/out", "output_name": "mine"}
    result = launch_commands(gui, release.schema.tab, form, {"/data": ["a.png"]}, WHERE)
    assert len(result.preparation) == (1 if release.name in NEVER_MERGE else 2)
    assert "sdxl_train.py" in str(result.training)
    known = {argument.name for argument in release.arguments.values()}
    for settings in result.toml.values():
        assert "optimizer_type" in settings
        assert set(settings) - known <= IGNORED
    return result


# Revision -> tab -> what is found in upstream's own presets of the same revision: findings, and files that have any.
# unknown: keys that the GUI does not know. slider, number: text where a number belongs. offered: values that are not.
# range: numbers outside. blocked: the next click on anything fails.
Counts = dict[str, tuple[int, int]]
COUNTED: dict[str, dict[Tab, Counts]] = {
    "v21.8.10": {"lora": {"unknown": (29, 17), "text": (36, 19)}},
    "v22.3.1": {
        "finetune": {"unknown": (4, 3), "text": (3, 2), "doubtful text": (2, 2)},
        "lora": {"unknown": (34, 20), "text": (46, 27), "range": (7, 4)},
    },
    "v24.1.7": {
        "finetune": {"unknown": (4, 3), "text": (0, 0)},
        "lora": {"unknown": (63, 29), "text": (0, 0), "offered": (8, 8), "range": (11, 6), "blocked": (0, 0)},
    },
    "v25.2.1": {
        "lora": {"unknown": (64, 30), "text": (0, 0), "offered": (8, 8), "range": (11, 6), "blocked": (8, 8)},
    },
    "v26.0.0": {
        "finetune": {"unknown": (4, 3), "text": (0, 0), "blocked": (0, 0)},
        "lora": {"unknown": (64, 30), "text": (0, 0), "offered": (8, 8), "range": (11, 6), "blocked": (8, 8)},
    },
    "master": {"lora": {"unknown": (64, 30), "offered": (8, 8), "range": (11, 6), "blocked": (19, 14)}},
}
COUNTS: dict[str, Callable[[Finding], bool]] = {
    "unknown": lambda one: one.rule in ("unknown-key", "renamed-key", "dead-key"),
    "text": lambda one: one.rule == "text-for-number" and one.level == "error",
    "doubtful text": lambda one: one.rule == "text-for-number" and one.level == "warning",
    "offered": lambda one: one.rule == "not-offered",
    "range": lambda one: one.rule == "out-of-range",
    "blocked": lambda one: one.rule in ("not-offered", "out-of-range") and one.level == "error",
}


def upstreams_own(gui: GitSources, tab: Tab) -> list[Preset]:
    paths = [path for path in gui.texts if path.startswith(f"presets/{tab}/") and path.endswith(".json")]
    return [as_preset(parse_values(gui.texts[path].encode(), path), path, tab) for path in paths]


@pytest.mark.parametrize("revision", COUNTED)
def test_upstreams_own_presets_have_the_known_faults(revision: str) -> None:
    gui = GitSources(revision, endings=(".py", ".txt", ".json"))
    training = training_of(revision, gui)
    for tab, expected in COUNTED[revision].items():
        release = release_of(revision, tab, gui, training)
        found = [check(preset, release) for preset in upstreams_own(gui, tab)]
        for name, counts in expected.items():
            each = [sum(map(COUNTS[name], findings)) for findings in found]
            assert (name, sum(each), sum(map(bool, each))) == (name, *counts)


@pytest.mark.parametrize("revision", kohya_revisions())
def test_fitting_repairs_every_preset_of_upstreams_own_and_once_is_enough(revision: str) -> None:
    gui = GitSources(revision, endings=(".py", ".txt", ".json"))
    training = training_of(revision, gui)
    fitted = 0
    for tab in TABS:
        presets = upstreams_own(gui, tab)
        release = release_of(revision, tab, gui, training) if presets else None
        for preset in presets:
            assert release is not None
            once = fit(preset, release.schema, arguments=release.flags, migration=release.migration)
            repaired = as_preset(once.values, preset.name, tab)
            assert check(repaired, release) == []
            json.dumps(once.values, allow_nan=False)
            twice = fit(repaired, release.schema, arguments=release.flags, migration=release.migration)
            assert (twice.values, twice.steps) == (once.values, [])
            fitted += 1
    assert fitted >= 13  # as many as v21.8.0 ships


def test_bare_sd_scripts_has_arguments_and_no_tab() -> None:
    sources = GitSources("main", os.environ["SD_SCRIPTS_GIT"], (".py",))
    assert read_schema(sources, "finetune") is None
    for script in ("sdxl_train.py", "train_network.py", "fine_tune.py"):
        assert len(arguments_of(sources, script)) > 100
    assert wants_cached_latents(sources)
