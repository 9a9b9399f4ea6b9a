"""Settings that no training sees, told from the text of the GUI and of the script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.check import check
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.release import Release, read_release
from kohya_ext.pysource.arguments import arguments_of
from kohya_ext.pysource.sources import TextSources
from tests.presets import second_guis
from tests.presets.second_guis import FIRST, TAB, TRAINING

FULL = {"sdxl_checkbox": True, "learning_rate": 1e-6, "optimizer": "AdamW"}
LECO = """
def setup_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts_file", type=str, required=True)
    parser.add_argument("--seed", type=int, required=False)
    return parser
"""


def release_of(tab: str, root: Path, *parts: dict[str, str]) -> Release:
    gui = {**FIRST, "kohya_gui/finetune_gui.py": tab}
    return read_release(second_guis.write(root, gui, TRAINING, *parts), "finetune", patched=True, gradio=5)


def told(values: dict[str, Any], release: Release, *rules: str) -> list[Finding]:
    found = check(Preset("mine", "finetune", values), release)
    return [one for one in found if one.rule in (rules or ("unread",))]


def test_an_argument_that_the_script_lacks(tmp_path: Path) -> None:
    always = TAB.replace("float(learning_rate_te) if not sdxl_checkbox else None", "float(learning_rate_te)")
    release = release_of(always, tmp_path)
    finding, = told({**FULL, "learning_rate_te": 1e-6}, release)  # fmt: skip
    assert (finding.level, finding.key) == ("warning", "learning_rate_te")
    assert "sdxl_train.py has no such argument" in finding.effect
    assert told({**FULL, "learning_rate_te": 0.0}, release) == []
    assert told(FULL, release) == []
    assert told({**FULL, "learning_rate_te": 1e-6, "sdxl_checkbox": False}, release) == []


def test_a_gui_that_leaves_it_out_by_itself_is_right(tmp_path: Path) -> None:
    assert told({**FULL, "learning_rate_te": 1e-6}, release_of(TAB, tmp_path)) == []


@pytest.mark.parametrize("key", ["split_mode", "train_blocks", "stop_text_encoder_training"])
def test_a_field_that_is_handed_on_nowhere(key: str, tmp_path: Path) -> None:
    with_field = TAB.replace("create_caption, seed", f"create_caption, {key}, seed").replace(
        "    seed = gr", f"    {key} = gr.Textbox()\n    seed = gr"
    )
    finding, = told({**FULL, key: "some"}, release_of(with_field, tmp_path / "lost"))  # fmt: skip
    assert (finding.level, finding.key) == ("warning", key)
    assert "finetune tab of this release never hands it on" in finding.effect
    assert told({**FULL, key: ""}, release_of(with_field, tmp_path / "lost")) == []
    used = with_field.replace("'seed': int", f"'{key}': {key},\n        'seed': int")
    passed = release_of(used, tmp_path / "used")
    assert "never hands" not in str(told({**FULL, key: "some"}, passed))


@pytest.mark.parametrize(
    ("tab", "script", "faulty"),
    [
        ("run_cmd = ['--config_file', name]", LECO, True),
        ("run_cmd = ['--prompts_file', prompts_file]", LECO, False),
        ("run_cmd = ['--config_file', name]", LECO.replace("required=True", "default='p.toml'"), False),
        ("run_cmd = [", LECO, False),
        (None, LECO, False),
    ],
    ids=["in-the-file-alone", "on-the-command-line", "not-required", "no-python", "no-tab"],
)
def test_the_leco_tab_of_a_release_that_cannot_start_it(
    tab: str | None, script: str, faulty: bool, tmp_path: Path
) -> None:
    leco = {"sd-scripts/train_leco.py": script, **({"kohya_gui/leco_gui.py": tab} if tab is not None else {})}
    release = release_of(TAB, tmp_path, leco)
    found = told({"prompts_file": "p.toml", "network_module": "networks.lora"}, release, "training-stops")
    assert [one.key for one in found] == (["prompts_file"] if faulty else [])
    assert told(FULL, release, "training-stops") == []
    assert told({"prompts_file": "p.toml"}, replace(release, gui=None), "training-stops") == []


def test_what_argparse_insists_on_is_read() -> None:
    arguments = arguments_of(TextSources({"train_leco.py": LECO}), "train_leco.py")
    assert {name: one.required for name, one in arguments.items()} == {"prompts_file": True, "seed": False}
