"""What an EMA does not go with: the run and `presets check` say the same of every combination."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.presets.schema import Field
from kohya_ext.runtime import options
from kohya_ext.spec.conflicts import CONFLICTS, SETTINGS, conflicts
from kohya_ext.spec.flags import BY_KEY
from tests.presets.test_check import RELEASE, SCHEMA, rules

VALUES: dict[str, list[Any]] = {
    "deepspeed": [True],
    "fused_backward_pass": [True],
    "offload_optimizer_device": ["cpu", "nvme"],
    "offload_param_device": ["cpu", "nvme"],
    "optimizer": ["AdamW", "AdamWScheduleFree"],
    "max_train_steps": [0, 100],
    "max_train_epochs": [0, 3],
    "save_model_as": ["same as source model", "ckpt", "safetensors", "diffusers_safetensors"],
    "use_safetensors": [True, False],
    "ema_start_step": ["99", "100", "101"],
    "ema_snapshot_every": ["save", "50"],
}
FIELDS = {
    "save_model_as": Field(
        "save_model_as", "Dropdown", choices=tuple(VALUES["save_model_as"]), default="same as source model"
    ),
    "use_safetensors": Field("use_safetensors", "Checkbox", default=True),
    "max_train_epochs": Field("max_train_epochs", "Number", default=0),
}
GUI = replace(RELEASE, schema=replace(SCHEMA, fields={**SCHEMA.fields, **FIELDS}))
FLAGS = (
    "deepspeed",
    "fused_backward_pass",
    "offload_optimizer_device",
    "offload_param_device",
    "ema_start_step",
    "ema_snapshot_every",
)  # in "additional parameters"


def stops(arguments: dict[str, Any]) -> bool:
    with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
        try:
            options.read(argparse.Namespace(**arguments))
        except SystemExit:
            return True
    return False


@given(st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}))
def test_what_the_check_refuses_stops_the_run(settings: dict[str, Any]) -> None:
    words = " ".join(
        f"--{key}" if value is True else f"--{key}={value}" for key, value in settings.items() if key in FLAGS
    )
    form = {key: value for key, value in settings.items() if key not in FLAGS}
    found = ("error", "ema", "additional_parameters") in rules(
        {**form, "additional_parameters": f"--enable_ema {words}"}, GUI
    )
    arguments = dict(settings)
    arguments["optimizer_type"] = arguments.pop("optimizer", None)
    assert found == stops({"enable_ema": True, **arguments})


@pytest.mark.parametrize("conflict", CONFLICTS, ids=lambda conflict: conflict.name)
def test_each_reads_only_what_the_check_can_tell(conflict: Any) -> None:
    class Noted(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

    asked: set[str] = set()
    conflict.found(Noted({"ema_snapshot_every": "save", "ema_start_step": 3, "max_train_steps": 2}))
    assert asked <= {*SETTINGS, *BY_KEY} and conflict.name in SETTINGS


def test_nothing_stops_a_run_whose_settings_are_sound() -> None:
    for more in ({}, {"max_train_steps": 100}, {"save_model_as": "safetensors", "use_safetensors": False}):
        assert not list(conflicts({"ema_start_step": 50, "ema_snapshot_every": 10, "optimizer_type": "AdamW", **more}))
