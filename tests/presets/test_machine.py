"""What presets depend on besides the release: xformers in the environment, and the GUI's own list of base models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.check import check
from kohya_ext.presets.document import Preset, bundled
from kohya_ext.presets.fit import fit
from kohya_ext.presets.machine import (
    MODEL,
    MODEL_LIST,
    OWN_ATTENTION,
    SDXL_BASE,
    XFORMERS,
    base_model,
    has_xformers,
    hub_models,
    names_xformers,
    without_xformers,
)
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Field, Schema
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.presets.training_rules import training_findings
from kohya_ext.pysource.arguments import Argument
from tests.install.test_requirements import environment

LIST = Field(XFORMERS, "Dropdown", choices=("none", "sdpa", "xformers"), default="xformers")
BOX = Field(XFORMERS, "Checkbox", default=True)
EXTRA = Field("additional_parameters", "Textbox")
OWN = Field(OWN_ATTENTION, "Checkbox", default=False)
OFFERED = (SDXL_BASE, "stabilityai/stable-diffusion-2-1/blob/main/v2-1_768-ema-pruned", "/m/models", "m/a.safetensors")
MODELS = Field(MODEL, "Dropdown", choices=OFFERED, custom=True, default="runwayml/stable-diffusion-v1-5")
SDXL_BOX = Field("sdxl", "Checkbox")


def schema(*fields: Field) -> Schema:
    return Schema("lora", "lora_gui.py", {one.key: one for one in fields}, presets_list=True)


def test_an_environment_that_cannot_train_says_nothing() -> None:
    trains = environment({"torch": "2.7", "accelerate": "1"})
    with_it = environment({"torch": "2.7", "accelerate": "1", "xformers": "0.0.30"})
    assert has_xformers([]) is None
    assert has_xformers([environment({})]) is None
    assert has_xformers([trains]) is False
    assert has_xformers([with_it]) is True
    assert has_xformers([with_it, trains]) is False


@pytest.mark.parametrize(
    ("fields", "flags", "changed"),
    [
        ((LIST, EXTRA), ("--sdpa",), {XFORMERS: "sdpa"}),
        ((BOX, EXTRA, OWN), ("--sdpa",), {XFORMERS: False, EXTRA.key: "--sdpa"}),
        ((BOX, EXTRA, OWN), (), {XFORMERS: False, OWN_ATTENTION: True}),
        ((BOX,), None, {XFORMERS: False}),
        ((replace(LIST, choices=("none", "xformers")), OWN), None, {XFORMERS: "none", OWN_ATTENTION: True}),
        ((replace(LIST, component=None, choices=None),), None, {XFORMERS: "sdpa"}),
        ((), None, {}),
    ],
)
def test_attention_without_xformers(fields: tuple[Field, ...], flags: Any, changed: dict[str, Any]) -> None:
    for asked in ({XFORMERS: "xformers"}, {XFORMERS: True}, {}):
        default = fields[0].default if fields else None
        assert without_xformers(asked, schema(*fields), flags) == (changed if asked or default else {})
    for other in ("sdpa", "none", False, ""):
        assert without_xformers({XFORMERS: other}, schema(*fields), flags) == {}


def test_fitting_changes_the_attention_only_where_the_package_is_known_to_be_missing() -> None:
    preset = Preset("p", "lora", {XFORMERS: "xformers"})
    assert [fit(preset, schema(LIST), xformers=one).values[XFORMERS] for one in (None, True, False)] == [
        "xformers",
        "xformers",
        "sdpa",
    ]
    steps = fit(preset, schema(LIST), xformers=False).steps
    assert [(step.action, step.key, step.after) for step in steps if step.key == XFORMERS] == [
        ("changed", XFORMERS, "sdpa")
    ]


def test_a_training_with_xformers_is_an_error_where_it_is_missing() -> None:
    training = ScriptRun("train_network.py", {XFORMERS: True}, {XFORMERS: Argument("--xformers", XFORMERS, "bool")})
    for has, count in ((False, 1), (True, 0), (None, 0)):
        release = Release("v0", schema(LIST), xformers=has)
        found = [one for one in training_findings(training, {XFORMERS: "xformers"}, release) if one.key == XFORMERS]
        assert len(found) == count


def test_the_base_model_is_the_one_that_the_list_offers() -> None:
    offering = schema(MODELS, SDXL_BOX)
    assert hub_models(offering) == {*OFFERED[:2]}
    assert base_model({"sdxl": True}, offering) == {MODEL: SDXL_BASE}
    assert base_model({"sdxl": False}, offering) == {}
    assert base_model({"sdxl": True, MODEL: "/my/model.safetensors"}, offering) == {}
    assert base_model({"sdxl": True}, schema(replace(MODELS, choices=()), SDXL_BOX)) == {}
    old = schema(Field(MODEL, "Textbox"), Field(MODEL_LIST, "Dropdown", choices=("custom", SDXL_BASE)), SDXL_BOX)
    assert base_model({"sdxl": True}, old) == {MODEL: SDXL_BASE, MODEL_LIST: SDXL_BASE}


@pytest.mark.parametrize(
    ("given", "personal", "left"),
    [
        ({}, False, SDXL_BASE),
        ({MODEL: "/my/model.safetensors"}, False, SDXL_BASE),
        ({MODEL: OFFERED[1]}, False, OFFERED[1]),
        ({MODEL: "/my/model.safetensors"}, True, "/my/model.safetensors"),
        ({}, True, None),
    ],
)
def test_a_fitted_preset_names_a_base_model(given: dict[str, str], personal: bool, left: str | None) -> None:
    preset = Preset("p", "lora", {"sdxl": True, **given})
    assert fit(preset, schema(MODELS, SDXL_BOX), keep_personal=personal).values.get(MODEL) == left


def test_a_name_of_the_list_is_not_a_path_of_a_machine() -> None:
    release = Release("v0", schema(MODELS, SDXL_BOX))
    rules = {
        value: {one.rule for one in check(Preset("p", "lora", {MODEL: value}), release)}
        for value in (SDXL_BASE, "some/folder")
    }
    assert "path" not in rules[SDXL_BASE]
    assert "path" in rules["some/folder"]


def test_the_files_that_ask_for_xformers(tmp_path: Path) -> None:
    for name, text in {"a": json.dumps({XFORMERS: "xformers"}), "b": "{}", "c": "no json"}.items():
        (tmp_path / name).write_text(text)
    assert [name for name in "abcd" if names_xformers(tmp_path / name)] == ["a"]


def test_ours_train_sdxl() -> None:
    """So each of them gets the base model of the list."""
    assert all(preset.values.get("sdxl_checkbox") or preset.values.get("sdxl") for preset in bundled())
