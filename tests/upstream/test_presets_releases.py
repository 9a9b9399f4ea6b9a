"""Our presets and upstream's own on every real release: fitted, checked, and followed to the training command."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from typing import Any

import pytest

from kohya_ext.errors import UnsupportedError
from kohya_ext.presets.arguments import arguments_of
from kohya_ext.presets.check import check
from kohya_ext.presets.convert import shown_at_start
from kohya_ext.presets.document import as_preset, bundled, parse_values
from kohya_ext.presets.fit import fit
from kohya_ext.presets.migration import read_migration
from kohya_ext.presets.rehearsal import Surroundings, rehearse
from kohya_ext.presets.release import SCRIPTS, Release, pinned_gradio, refuses_no_upscale, wants_cached_latents
from kohya_ext.presets.schema import Tab, read_schema
from kohya_ext.presets.sources import Sources, TextSources
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
            fitted = fit(preset, release.schema, arguments=release.flags)
        except UnsupportedError as error:
            assert preset.name == "AdaCoor-24GB"
            assert "--fused_backward_pass" in str(error)
            assert "--fused_backward_pass" not in release.flags
            continue
        left = check(as_preset(fitted.values, preset.name, preset.tab), release)
        assert [finding for finding in left if finding.rule != "release-defect"] == []
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
    result = rehearse(gui, release.schema.tab, form, {"/data": ["a.png"]}, WHERE)
    assert len(result.preparation) == (1 if release.name in NEVER_MERGE else 2)
    assert "sdxl_train.py" in str(result.training)
    known = {argument.name for argument in release.arguments.values()}
    for settings in result.toml.values():
        assert "optimizer_type" in settings
        assert set(settings) - known <= IGNORED
    return result


# revision -> tab -> files with: text where a number belongs, values that are not offered, numbers out of range;
# and the keys that the release does not know: how many, in how many files
COUNTED = {
    "v22.3.1": {"finetune": (4, 0, 0, 4, 3), "lora": (27, 0, 4, 34, 20)},
    "v24.1.7": {"finetune": (0, 0, 0, 4, 3), "lora": (0, 8, 6, 63, 29)},
    "v25.2.1": {"lora": (0, 8, 6, 64, 30)},
    "v26.0.0": {"finetune": (0, 0, 0, 4, 3), "lora": (0, 8, 6, 64, 30)},
    "master": {"lora": (0, 8, 6, 64, 30)},
}
UNKNOWN = {"unknown-key", "renamed-key", "dead-key"}


@pytest.mark.parametrize("revision", COUNTED)
def test_upstreams_own_presets_have_the_known_faults_and_fitting_cures_them(revision: str) -> None:
    gui = GitSources(revision, endings=(".py", ".txt", ".json"))
    training = training_of(revision, gui)
    for tab, expected in COUNTED[revision].items():
        release = release_of(revision, tab, gui, training)  # type: ignore[arg-type]
        faulty = dict.fromkeys(("text-for-number", "not-offered", "out-of-range"), 0)
        blocking = unknown = strange = 0
        for path, text in gui.texts.items():
            if not path.startswith(f"presets/{tab}/") or not path.endswith(".json"):
                continue
            preset = as_preset(parse_values(text.encode(), path), path, release.schema.tab)
            findings = check(preset, release)
            rules = {finding.rule for finding in findings}
            for rule in faulty:
                faulty[rule] += rule in rules
            unknown += sum(finding.rule in UNKNOWN for finding in findings)
            strange += bool(rules & UNKNOWN)
            blocking += any(f.level == "error" and f.rule in ("not-offered", "out-of-range") for f in findings)
            fitted = fit(preset, release.schema, arguments=release.flags)
            again = check(as_preset(fitted.values, path, release.schema.tab), release)
            assert [finding for finding in again if finding.rule != "release-defect"] == []
            json.dumps(fitted.values, allow_nan=False)
        assert (*faulty.values(), unknown, strange) == expected
        if revision == "master":
            assert blocking == 14


def test_bare_sd_scripts_has_arguments_and_no_tab() -> None:
    sources = GitSources("main", os.environ["SD_SCRIPTS_GIT"], (".py",))
    assert read_schema(sources, "finetune") is None
    for script in ("sdxl_train.py", "train_network.py", "fine_tune.py"):
        assert len(arguments_of(sources, script)) > 100
    assert wants_cached_latents(sources)
