"""A preset as TOML and back: the same commands, whatever the form holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import toml
from hypothesis import given, settings
from hypothesis import strategies as st

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.presets.command import commands
from kohya_ext.presets.document import Preset, bundled
from kohya_ext.presets.flat_file import file_bytes, table_of, to_file, to_form
from kohya_ext.presets.launch_command import LaunchCommands
from kohya_ext.presets.project import Project
from kohya_ext.presets.release import Release, read_release
from kohya_ext.presets.script_config import settings_of
from kohya_ext.spec.preset_files import TABLE
from tests.presets import second_guis
from tests.presets.test_launch_command import WHERE

SDXL = "sdxl_train.py"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return second_guis.write(tmp_path_factory.mktemp("both") / "kohya_ss")


@pytest.fixture(scope="module")
def release(checkout: Checkout) -> Release:
    return read_release(checkout, "finetune", patched=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).touch()
    return folder


def through_toml(preset: Preset, release: Release) -> tuple[dict[str, Any], Preset]:
    """What the file holds, and the preset that comes out of its bytes."""
    content, _ = to_file(preset, release)
    read = toml.loads(file_bytes(content).decode())
    script = SDXL if read["architecture"] == "sdxl" else "fine_tune.py"
    back = to_form(settings_of(read).values, table_of(read), script, release)
    assert back.steps == []
    return read, Preset(preset.name, preset.tab, back.values, preset.about)


def run_of(preset: Preset, release: Release, checkout: Checkout, images: Path) -> LaunchCommands:
    result = commands(preset, release, checkout, Project(images, "base/model", images / "out", "mine"), WHERE)
    result.complaints = []
    return result


def same_run(first: LaunchCommands, second: LaunchCommands) -> bool:
    words = [set(map(str, one.training or ())) for one in (first, second)]
    return words[0] == words[1] and first.toml == second.toml and first.preparation == second.preparation


FINETUNES = [preset for preset in bundled() if preset.tab == "finetune"]


@pytest.mark.parametrize("preset", FINETUNES, ids=lambda preset: preset.name)
def test_our_presets_train_the_same_after_both_ways(
    preset: Preset, release: Release, checkout: Checkout, images: Path
) -> None:
    read, back = through_toml(preset, release)
    assert read["optimizer_type"] == preset.values["optimizer"]
    assert same_run(run_of(preset, release, checkout, images), run_of(back, release, checkout, images))


@cache
def forms() -> st.SearchStrategy[dict[str, Any]]:
    whole = st.integers(0, 10_000)
    words = st.lists(st.sampled_from(["eps=1e-8", "weight_decay=0.1", "betas=0.9,0.99"]), unique=True).map(" ".join)
    flags = st.lists(
        st.sampled_from(["--max_grad_norm=0.5", "--enable_ema", "--ema_decay=0.99", "--ema_sigma_rel 0.05 0.1"]),
        unique=True,
    ).map(" ".join)
    return st.fixed_dictionaries(
        {},
        optional={
            "sdxl_checkbox": st.booleans(),
            "learning_rate": st.floats(0, 1, allow_subnormal=False) | st.sampled_from([1, 1e-7]),
            "learning_rate_te": st.floats(0, 1, allow_subnormal=False),
            "epoch": whole,
            "max_train_epochs": whole,
            "max_train_steps": whole,
            "lr_warmup": st.integers(0, 100),
            "optimizer": st.sampled_from(["AdamW", "AdamW8bit", "Lion", "AdaCoor"]),
            "optimizer_args": words,
            "max_resolution": st.sampled_from(["512,512", "1024,1024", "768"]),
            "xformers": st.sampled_from(["none", "sdpa", "xformers"]),
            "sdxl_no_half_vae": st.booleans(),
            "mixed_precision": st.sampled_from(["no", "fp16", "bf16"]),
            "caption_extension": st.text(max_size=5),
            "create_caption": st.booleans(),
            "seed": whole,
            "additional_parameters": flags,
            "pad_3": st.booleans(),
        },
    )


@given(values=forms())
@settings(max_examples=60)
def test_any_preset_trains_the_same_after_both_ways(
    values: Mapping[str, Any], release: Release, checkout: Checkout, images: Path
) -> None:
    preset = Preset("any", "finetune", values)
    _, back = through_toml(preset, release)
    assert same_run(run_of(preset, release, checkout, images), run_of(back, release, checkout, images))


def test_an_edited_file_wins_over_what_the_form_had(release: Release) -> None:
    preset = Preset("p", "finetune", {"sdxl_checkbox": True, "xformers": "xformers", "epoch": 3, "max_train_steps": 0,
                                      "additional_parameters": "--enable_ema --ema_decay=0.99"})  # fmt: skip
    content, _ = to_file(preset, release)
    content.update(learning_rate=0.25, sdpa=True, max_grad_norm=0.5)
    del content["xformers"], content["enable_ema"]
    back = to_form(settings_of(content).values, table_of(content), SDXL, release)
    assert back.values["learning_rate"] == 0.25
    assert back.values["xformers"] == "sdpa"
    assert set(back.values["additional_parameters"].split()) == {"--ema_decay=0.99", "--max_grad_norm=0.5"}
    assert back.values["epoch"] == 3
    assert back.steps == []


def test_what_no_argument_tells_is_in_a_table_of_its_own(release: Release) -> None:
    preset = Preset("p", "finetune", {"sdxl_checkbox": True, "create_caption": False, "learning_rate": 0.5})
    content, _ = to_file(preset, release)
    assert table_of(content)["form"]["create_caption"] is False
    assert "learning_rate" not in table_of(content)["form"]
    assert content["learning_rate"] == 0.5
    assert TABLE not in settings_of(content).values


def test_a_file_without_the_table_gives_a_form_too(release: Release) -> None:
    back = to_form({"learning_rate": 0.5, "resolution": "768", "no_half_vae": True}, {}, SDXL, release)
    assert (back.values["learning_rate"], back.values["max_resolution"]) == (0.5, "768")
    assert back.values["sdxl_no_half_vae"] is True
    assert back.values["sdxl_checkbox"] is True


def test_nothing_of_one_machine_is_taken_over(release: Release) -> None:
    settings = {"learning_rate": 0.5, "output_dir": "/home/me", "train_data_dir": "/home/me/images"}
    back = to_form(settings, {}, SDXL, release)
    assert {step.key for step in back.steps if step.action == "dropped"} == {"output_dir", "train_data_dir"}
    assert "/home/me" not in str(back.values)
    content, _ = to_file(Preset("p", "finetune", {"sdxl_checkbox": True, "output_dir": "/home/me"}), release)
    assert "/home/me" not in str(content)


def test_settings_of_a_script_that_the_tab_never_runs_are_refused(release: Release) -> None:
    with pytest.raises(UsageError, match=r"runs fine_tune\.py for these settings, not train_network\.py: give --tab"):
        to_form({"learning_rate": 0.5}, {}, "train_network.py", release)


def test_the_file_is_ascii_that_toml_reads(release: Release) -> None:
    texts = ["café \U0001f600 \x7f", "日本"]
    content = {"kohya_ext": {"about": {"notes": texts}}, "learning_rate": 1e-7}
    data = file_bytes(content)
    assert data.isascii()
    assert toml.loads(data.decode()) == content


def test_a_gui_that_cannot_be_followed_gives_no_file(checkout: Checkout, tmp_path: Path) -> None:
    strange = {
        **second_guis.FIRST,
        "kohya_gui/finetune_gui.py": second_guis.TAB.replace("steps = int(max", "steps = ask(max"),
    }
    other = second_guis.write(tmp_path / "kohya_ss", strange, second_guis.TRAINING)
    release = read_release(other, "finetune", patched=True)
    with pytest.raises(UnsupportedError, match="cannot be determined"):
        to_file(Preset("p", "finetune", {"sdxl_checkbox": True}), release)
