from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import toml

from kohya_ext.presets import collect
from kohya_ext.presets.collection import collect_all
from kohya_ext.presets.document import bundled
from kohya_ext.presets.keys import PRIVATE
from kohya_ext.presets.memory_text import memory_text
from kohya_ext.presets.settings import OTHER, described, grouped
from tests.presets import guis, second_guis


def test_the_presets_of_a_checkout_are_fitted_to_its_gui(tmp_path: Path) -> None:
    files = collect(guis.write(guis.EMBEDDED, tmp_path))
    path = "presets/finetune/user_presets/AdaCoor-48GB.json"
    values = json.loads(files[path])
    assert values["optimizer"] == "AdaCoor"
    assert values["learning_rate"] == 1
    assert values["max_token_length"] == "75"
    about = values["_about"]
    assert about["fitted_to"] == "v0.0.0"
    assert about["title"] and about["vram"]["estimate"] and about["warnings"] and about["extract_command"]
    assert about["fill_in"] == ["pretrained_model_name_or_path", "image_folder", "Folder", "output_dir", "output_name"]
    assert "derived" not in about
    assert "min_snr_gamma" not in values
    assert files[path].isascii()


def test_what_the_release_cannot_take_is_left_out_with_the_reason(tmp_path: Path) -> None:
    collection = collect_all(guis.write(guis.EMBEDDED, tmp_path / "old"))
    assert not any("24GB" in path for path in collection.files)
    assert "fused_backward_pass" in collection.refused["AdaCoor-24GB"]
    newer = collect_all(guis.write(guis.REGISTRY, tmp_path / "new"))
    assert any("24GB" in path for path in newer.files)


def test_collecting_writes_nothing_and_is_the_same_every_time(tmp_path: Path) -> None:
    checkout = guis.write(guis.REGISTRY, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert collect(checkout) == collect(checkout)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkout_without_a_gui_gets_none(tmp_path: Path) -> None:
    checkout = guis.write(guis.EMBEDDED, tmp_path)
    checkout = replace(checkout, gui_root=None)
    assert collect(checkout) == {}


def test_a_second_gui_gets_the_same_presets_as_toml(tmp_path: Path) -> None:
    checkout = second_guis.write(tmp_path / "both")
    files = collect(checkout)
    names = {Path(path).with_suffix("") for path in files if path.endswith(".json")}
    assert names == {Path(path).with_suffix("") for path in files if path.endswith(".toml")}
    values = toml.loads(files["presets/finetune/user_presets/AdaCoor-48GB.toml"].decode())
    assert (values["optimizer_type"], values["learning_rate"], values["architecture"]) == ("AdaCoor", 1, "sdxl")
    assert values["kohya_ext"]["about"]["fitted_to"] == checkout.release
    without = collect(second_guis.write(tmp_path / "first", second_guis.FIRST, second_guis.TRAINING))
    assert not any(path.endswith(".toml") for path in without)
    assert {path: data for path, data in files.items() if path.endswith(".json")} == without


def test_without_the_xformers_package_the_toml_files_choose_another_attention(tmp_path: Path) -> None:
    files = collect(second_guis.write(tmp_path), xformers=False)
    values = toml.loads(files["presets/finetune/user_presets/AdaCoor-48GB.toml"].decode())
    assert values["sdpa"] is True
    assert "xformers" not in values


def test_a_gui_that_cannot_be_followed_gets_json_alone_and_the_reason(tmp_path: Path) -> None:
    gui = {**second_guis.FIRST, "kohya_gui/finetune_gui.py": second_guis.TAB.replace("= int(max", "= ask(max", 1)}
    collection = collect_all(second_guis.write(tmp_path, gui, second_guis.SECOND, second_guis.TRAINING))
    assert not any(path.endswith(".toml") for path in collection.files)
    assert "cannot be determined" in collection.refused["AdaCoor-48GB as TOML"]


def test_importing_the_package_is_light() -> None:
    code = "import sys, kohya_ext.presets; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_setting_of_ours_has_a_section_and_a_text() -> None:
    for preset in bundled():
        assert OTHER not in grouped(list(preset.values)), grouped(list(preset.values))[OTHER]
        assert all(described(key) for key in preset.values)


def test_every_preset_says_where_it_comes_from_and_what_it_needs() -> None:
    presets = list(bundled())
    assert len([preset for preset in presets if preset.tab == "finetune"]) == 9
    for preset in presets:
        about = preset.about
        for key in ("title", "origin", "extract", "extract_command"):
            assert isinstance(about[key], str) and about[key]
        date.fromisoformat(about["date"])
        assert f"{about['vram']['tier_gb']}GB" in preset.name or preset.name == "LoRA-AdaCoor-Auto"
        assert about["vram"]["estimate"] == memory_text(about["vram"])
        assert about["vram"]["gib"]["low"] < about["vram"]["tier_gb"]
        assert set(preset.requires) <= {"AdaCoor", "EMA", "fused_backward_pass"}
        assert ("AdaCoor" in preset.requires) is (preset.values["optimizer"] == "AdaCoor")
        assert ("EMA" in preset.requires) is ("--enable_ema" in preset.values["additional_parameters"])
        assert set(about["fill_in"]) <= PRIVATE
        derived = [key.strip() for keys in about["derived"] for key in keys.split(",") if keys != "other fields"]
        assert set(derived) <= set(preset.values)
        assert not PRIVATE & set(preset.values)
