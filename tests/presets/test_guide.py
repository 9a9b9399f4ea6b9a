from __future__ import annotations

from typing import Any

import pytest

from kohya_ext.presets.document import Preset, bundled, find_bundled
from kohya_ext.presets.guide import ADVICE, departures
from kohya_ext.presets.settings import described


def departed(values: dict[str, Any], tab: Any = "finetune") -> dict[str, str]:
    """Key -> effect of each departure."""
    return {finding.key: finding.effect for finding in departures(Preset("mine", tab, values))}


@pytest.mark.parametrize("name", ["AdaCoor-48GB", "AdaCoor-48GB-EMA", "Lion-48GB"])
def test_the_guides_current_presets_depart_from_its_advice_in_nothing(name: str) -> None:
    assert list(departures(find_bundled(name))) == []


def test_every_preset_of_ours_gives_its_reason_where_it_departs() -> None:
    found = {preset.name: list(departures(preset)) for preset in bundled()}
    assert {finding.key for finding in found["AdaCoor-24GB"]} == {
        "full_bf16",
        "mixed_precision",
        "save_precision",
        "gradient_checkpointing",
    }
    assert {finding.key for finding in found["A100-80GB-EMA"]} == {
        "dataset_repeats",
        "gradient_accumulation_steps",
        "min_snr_gamma",
    }
    for findings in found.values():
        assert all(finding.fix.startswith("none, it is intentional") for finding in findings)


def test_every_advice_has_a_text_of_what_the_setting_does() -> None:
    assert all(described(key) for key in ADVICE)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"optimizer": "Lion", "learning_rate": 1e-6}, "learning_rate"),
        ({"optimizer": "AdamW8bit", "learning_rate_te1": 1e-4}, "learning_rate_te1"),
        ({"optimizer": "kohya_ext.optim.AdaCoor", "optimizer_args": "eps=1e-8", "learning_rate": 0.5}, "learning_rate"),
        ({"optimizer": "AdaCoor", "optimizer_args": "eps=1e-6"}, "optimizer_args"),
        ({"optimizer": "AdaCoor", "optimizer_args": ""}, "optimizer_args"),
        ({"optimizer": "Prodigy"}, "optimizer"),
        ({"optimizer": "PagedAdamW8bit"}, "optimizer"),
        ({"optimizer": "SGDNesterov"}, "optimizer"),
        ({"dataset_repeats": "10"}, "dataset_repeats"),
        ({"create_buckets": False}, "create_buckets"),
        ({"additional_parameters": "--enable_ema --ema_decay=0.999"}, "additional_parameters"),
    ],
)
def test_departures(values: dict[str, Any], key: str) -> None:
    assert list(departed(values)) == [key]


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "AdaCoor", "optimizer_args": "eps=0.00000001 weight_decay=0", "learning_rate": 1},
        {"optimizer": "AdamW", "learning_rate": "1e-06", "dataset_repeats": "1"},
        {"additional_parameters": "--enable_ema"},
        {"additional_parameters": "--ema_decay=0.9"},
        {"min_snr_gamma": None},
    ],
)
def test_no_departures(values: dict[str, Any]) -> None:
    assert departed(values) == {}


def test_the_rates_are_those_of_a_full_fine_tune() -> None:
    values = {"optimizer": "AdamW", "unet_lr": 1e-4}
    assert departed(values, "lora") == {}
    assert list(departed(values, "dreambooth")) == ["unet_lr"]


def test_values_are_spelt_as_in_a_preset() -> None:
    assert departed({"random_crop": False})["random_crop"].startswith("the guide advises true: ")
