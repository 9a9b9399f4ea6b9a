from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.document import Preset
from kohya_ext.presets.fit import Fitted, fit
from kohya_ext.presets.keys import PRIVATE
from kohya_ext.presets.migration import Migration
from kohya_ext.presets.schema import Field, Schema, read_schema
from kohya_ext.pysource.sources import TextSources
from tests.presets import guis


def schema_of(texts: dict[str, str]) -> Schema:
    schema = read_schema(TextSources(texts), "finetune", patched=True)
    assert schema is not None
    return schema


EMBEDDED, REGISTRY = schema_of(guis.EMBEDDED), schema_of(guis.REGISTRY)


def fitted(values: dict[str, Any], schema: Schema, **options: Any) -> Fitted:
    about = options.pop("about", {})
    return fit(Preset("mine", "finetune", values, about), schema, **options)


def test_a_fitted_preset_is_complete() -> None:
    result = fitted({"optimizer": "AdaCoor"}, EMBEDDED).values
    assert set(result) == set(EMBEDDED.fields) - PRIVATE
    assert result["optimizer"] == "AdaCoor"
    assert result["learning_rate"] == 1e-5


def test_paths_secrets_and_machines_never_go_in() -> None:
    result = fitted({"train_dir": "/home/somebody", "wandb_api_key": "x"}, EMBEDDED)
    assert not PRIVATE & set(result.values)
    assert {(step.action, step.key) for step in result.steps} >= {
        ("dropped", "train_dir"),
        ("dropped", "wandb_api_key"),
    }


def test_paths_and_secrets_inside_other_texts_go_too() -> None:
    words = "--a=1 --wandb_api_key=hidden --cache_dir=/my/folder"
    result = fitted({"optimizer": "Lion", "additional_parameters": words}, EMBEDDED)
    assert result.values["additional_parameters"] == "--a=1"
    assert "hidden" not in str(result.steps)
    kept = fitted(
        {"optimizer": "Lion", "additional_parameters": words, "train_dir": "/d"}, EMBEDDED, keep_personal=True
    )
    assert kept.values["additional_parameters"] == "--a=1 --cache_dir=/my/folder"
    assert kept.values["train_dir"] == "/d"


def test_the_remark_of_a_preset_chosen_before_does_not_stay() -> None:
    schema = Schema("lora", "gui.py", {"training_comment": Field("training_comment", "Textbox")}, presets_list=True)
    assert fitted({}, schema).values == {"training_comment": ""}
    assert fitted({"training_comment": "trigger: sks"}, schema).values == {"training_comment": "trigger: sks"}


NOISE = ("noise_offset", "adaptive_noise_scale", "lr_warmup", "additional_parameters")
NOISY = Schema(
    "finetune",
    "gui.py",
    {key: Field(key, "Textbox" if key == "additional_parameters" else "Number", default=0) for key in NOISE},
    presets_list=True,
)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"adaptive_noise_scale": 0.005, "noise_offset": 0.05}, (0, "--adaptive_noise_scale=0.005")),
        ({"adaptive_noise_scale": 0.005, "noise_offset": 0}, (0, "")),
        ({"adaptive_noise_scale": 2.0, "noise_offset": 0.05}, (2.0, "")),
    ],
)
def test_a_fraction_that_loading_cuts_off_goes_where_it_counts(given: dict[str, Any], left: tuple[Any, str]) -> None:
    loading = Migration(whole={"adaptive_noise_scale": 0, "lr_warmup": 0})
    start = {"additional_parameters": "", "lr_warmup": 0.5}
    once = fitted({**start, **given}, NOISY, migration=loading).values
    assert (once["adaptive_noise_scale"], once["additional_parameters"]) == left
    assert once["lr_warmup"] == 0
    assert fitted(once, NOISY, migration=loading).steps == []
    kept = fitted({**start, **given}, NOISY).values  # nothing is cut off where nothing is loaded
    assert (kept["adaptive_noise_scale"], kept["lr_warmup"]) == (given["adaptive_noise_scale"], 0.5)


def test_values_are_converted_and_it_is_said() -> None:
    result = fitted({"epoch": "3", "max_token_length": 150, "optimizer": "Lion", "learning_rate": 5}, EMBEDDED)
    assert (result.values["epoch"], result.values["max_token_length"], result.values["learning_rate"]) == (3, "150", 1)
    actions = {step.key: step.action for step in result.steps}
    assert (actions["epoch"], actions["max_token_length"]) == ("converted", "converted")
    assert actions["learning_rate"] == "changed"


def test_unknown_keys_go_and_old_names_are_translated() -> None:
    result = fitted({"generate_caption_database": False, "nonsense": 1, "optimizer": "Lion"}, REGISTRY)
    assert result.values["create_caption"] is False
    assert "nonsense" not in result.values


def test_crossed_keys_are_left_alone() -> None:
    assert "swapped_one" not in fitted({"swapped_one": True}, REGISTRY).values


def test_without_an_optimizer_it_is_the_one_every_release_takes() -> None:
    assert fitted({}, EMBEDDED).values["optimizer"] == "AdamW"
    assert fitted({"use_8bit_adam": True}, EMBEDDED).values["optimizer"] == "AdamW8bit"


def test_an_optimizer_that_is_not_offered_is_refused_since_its_rate_fits_no_other() -> None:
    with pytest.raises(UnsupportedError, match="Sophia"):
        fitted({"optimizer": "Sophia", "learning_rate": 1}, EMBEDDED)


def test_a_setting_without_a_field_goes_through_additional_parameters() -> None:
    values = {"fused_backward_pass": True, "additional_parameters": "--max_grad_norm=1"}
    flags = frozenset({"--fused_backward_pass"})
    result = fitted(values, EMBEDDED, arguments=flags)
    assert result.values["additional_parameters"] == "--max_grad_norm=1 --fused_backward_pass"
    assert fitted(values, REGISTRY, arguments=flags).values["fused_backward_pass"] is True


def test_what_a_preset_requires_and_the_release_lacks_stops_it() -> None:
    values = {"fused_backward_pass": True}
    with pytest.raises(UnsupportedError, match="fused_backward_pass"):
        fitted(values, EMBEDDED, arguments=frozenset(), about={"requires": ["fused_backward_pass"]})
    assert "fused_backward_pass" not in fitted(values, EMBEDDED, arguments=frozenset()).values


def test_a_gui_that_cannot_be_followed_gets_the_values_as_they_are() -> None:
    keys_only = schema_of({"finetune_gui.py": guis.EMBEDDED_TAB.split("def finetune_tab")[0]})
    result = fitted({"epoch": "3", "seed": float("nan"), "nonsense": 1, "train_dir": "/x"}, keys_only).values
    assert result == {"epoch": "3", "optimizer": "AdamW"}


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.lists(st.integers()))
KEYS = st.sampled_from(sorted({*EMBEDDED.fields, *REGISTRY.fields, "use_wandb", "generate_caption_database", "?"}))


@given(st.dictionaries(KEYS, SCALARS), st.sampled_from([EMBEDDED, REGISTRY]))
def test_fitting_twice_changes_nothing(values: dict[str, Any], schema: Schema) -> None:
    try:
        once = fitted(values, schema).values
    except UnsupportedError:
        return
    again = fitted(once, schema)
    assert again.values == once
    assert {step.action for step in again.steps} <= {"filled"}


def test_empty_texts_of_old_number_fields_mean_their_default() -> None:
    result = fitted({"optimizer": "Lion", "learning_rate": "", "epoch": ""}, EMBEDDED).values
    assert (result["learning_rate"], result["epoch"]) == (1e-5, 1)


WIDE = Schema(
    "lora",
    "lora_gui.py",
    {
        one.key: one
        for one in (
            Field("LoRA_type", "Dropdown", choices=("Standard", "LyCORIS/LoKr"), default="Standard"),
            Field("network_dim", "Slider", minimum=1, maximum=512, step=1, default=8),
            Field("conv_dim", "Slider", minimum=0, maximum=512, step=1, default=1),
            Field("optimizer", "Dropdown", choices=("AdamW",), default="AdamW"),
            Field("optimizer_args", "Textbox", default=""),
            Field("caption_extension", "Dropdown", choices=("", ".cap", ".caption", ".txt"), default=".txt"),
            Field("additional_parameters", "Textbox", default=""),
        )
    },
    presets_list=True,
)
SCRIPT_FLAGS = frozenset({"--network_dim", "--caption_extension"})


def wide(gradio: int | None, **values: Any) -> dict[str, Any]:
    return fit(Preset("mine", "lora", values), WIDE, arguments=SCRIPT_FLAGS, gradio=gradio).values


def test_a_slider_keeps_what_its_gradio_takes() -> None:
    full = {"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "conv_dim": 100000}
    assert {key: wide(5, **full)[key] for key in full} == full
    sixth = wide(6, **full)
    assert (sixth["network_dim"], sixth["conv_dim"]) == (512, 512)
    assert sixth["additional_parameters"] == "--network_dim=100000"  # conv_dim has no flag: fit says that it changes


def test_caption_files_of_another_kind_are_never_read_instead() -> None:
    assert wide(5, caption_extension=".none-use-foldername")["caption_extension"] == ""
    other = wide(5, caption_extension=".tags")
    assert (other["caption_extension"], other["additional_parameters"]) == ("", "--caption_extension=.tags")
    assert wide(5, caption_extension=".cap")["caption_extension"] == ".cap"


@pytest.mark.parametrize("kind", [".tags", ".none-use-foldername"])
def test_up_to_gradio_4_a_list_takes_any_kind_of_caption_file(kind: str) -> None:
    kept = wide(4, caption_extension=kind)
    assert (kept["caption_extension"], kept["additional_parameters"]) == (kind, "")


def test_what_a_release_zeroes_when_it_is_absent_stays_so() -> None:
    numbers = {key: Field(key, "Number", default=10) for key in ("lr_warmup", "epoch", "learning_rate")}
    schema = replace(WIDE, fields={**WIDE.fields, **numbers})
    migration = Migration(zeroed=frozenset({*numbers, "unet_lr"}))
    result = fit(Preset("mine", "lora", {"epoch": 3}), schema, migration=migration)
    assert {key: result.values[key] for key in numbers} == {"lr_warmup": 0, "epoch": 3, "learning_rate": 10}
    assert [step.reason for step in result.steps if step.key == "lr_warmup"] == ["absent; this release sets it to 0"]
    assert fit(Preset("mine", "lora", {"epoch": 3}), schema).values["lr_warmup"] == 10


@pytest.mark.parametrize(("given", "kept"), [(True, ""), ("True", "wandb"), (False, ""), ("", "")])
def test_a_logger_that_no_release_would_have_switched_on_stays_off(given: Any, kept: str) -> None:
    log = Field("log_with", "Dropdown", choices=("", "wandb"), default="")
    result = fit(Preset("mine", "lora", {"use_wandb": given}), replace(WIDE, fields={**WIDE.fields, "log_with": log}))
    assert result.values["log_with"] == kept


def test_blanks_between_arguments() -> None:
    assert wide(5, optimizer_args=" a=1  b=2 ")["optimizer_args"] == "a=1 b=2"


@pytest.mark.parametrize("values", [{"flux1_checkbox": True, "LoRA_type": "Flux1"}, {"LoRA_type": "Lumina"}])
def test_a_family_that_the_release_lacks_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="this release"):
        wide(5, **values)
