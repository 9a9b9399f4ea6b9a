"""What "Start training" would do: a small GUI of each era, and a small training script behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.check import check
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.migration import Migration
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Field, Schema
from kohya_ext.pysource.arguments import arguments_of
from kohya_ext.pysource.sources import TextSources

KEYS = [
    "optimizer", "optimizer_args", "lr_scheduler", "learning_rate", "unet_lr", "text_encoder_lr", "max_resolution",
    "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "enable_bucket", "clip_skip", "max_train_epochs",
    "epoch", "sdxl_cache_text_encoder_outputs", "shuffle_caption", "noise", "LoRA_type", "additional_parameters",
    "train_data_dir", "output_dir", "stop_text_encoder_training", "network_weights",
]  # fmt: skip
SHELL_TAB = f"""
import os
import math
from .common_gui import output_message, validate_args_setting

executor = None

def open_configuration(ask_for_file, apply_preset, file_path, {", ".join(KEYS)}):
    pass

def train_model(headless, print_only, {", ".join(KEYS)}):
    if LoRA_type == "Refused":
        output_message(msg="LoRA type Refused is not for you", headless=True)
        return
    if LoRA_type == "Silent":
        return
    run_cmd = f'accelerate launch "./sdxl_train_network.py" --resolution="{{max_resolution}}"'
    if enable_bucket:
        run_cmd += f" --enable_bucket --min_bucket_reso={{min_bucket_reso}} --max_bucket_reso={{max_bucket_reso}}"
        run_cmd += f" --bucket_reso_steps={{bucket_reso_steps}}"
    if int(clip_skip) > 1:
        run_cmd += f" --clip_skip={{int(clip_skip)}}"
    if noise > 0:
        run_cmd += f" --noise={{noise}}"
    if max_train_epochs:
        run_cmd += f" --max_train_epochs={{max_train_epochs}}"
    if stop_text_encoder_training > 0:
        run_cmd += f" --stop_text_encoder_training={{stop_text_encoder_training}}"
    if sdxl_cache_text_encoder_outputs:
        run_cmd += " --cache_text_encoder_outputs"
    if shuffle_caption:
        run_cmd += " --shuffle_caption"
    if float(text_encoder_lr) == 0:
        run_cmd += " --network_train_unet_only"
    else:
        run_cmd += f" --text_encoder_lr={{text_encoder_lr}}"
    run_cmd += f" --unet_lr={{unet_lr}} --learning_rate={{learning_rate}} --lr_scheduler={{lr_scheduler}}"
    if LoRA_type == "Standard":
        run_cmd += " --network_module=networks.lora"
    if LoRA_type == "Flux1":
        run_cmd += " --network_module=networks.lora_flux"
    run_cmd += f" --optimizer_type={{optimizer}}"
    if optimizer_args != "":
        run_cmd += f" --optimizer_args {{optimizer_args}}"
    if network_weights:
        run_cmd += f" --old_weights={{network_weights}}"
    run_cmd += f" {{additional_parameters}}"
    executor.execute_command(run_cmd=run_cmd)
"""
LIST_TAB = SHELL_TAB.replace(
    '    if LoRA_type == "Refused"',
    '    if not validate_args_setting(optimizer_args):\n        return\n    if LoRA_type == "Refused"',
)
COMMON = """
def output_message(msg, headless):
    raise RuntimeError

def validate_args_setting(text):
    return re.match(r"^$", text)
"""
SCRIPT = """
import argparse
import train_network

class SdxlNetworkTrainer(train_network.NetworkTrainer):
    def assert_extra_args(self, args, group):
        assert args.network_train_unet_only or not args.cache_text_encoder_outputs, "no caching when trained / x"
        group.verify_bucket_reso_steps(32)

def setup_parser():
    parser = train_network.setup_parser()
    parser.add_argument("--cache_text_encoder_outputs", action="store_true")
    return parser
"""
NETWORK = """
import argparse

class NetworkTrainer:
    def train(self, args):
        self.assert_extra_args(args, data(args))

def setup_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--resolution", type=str)
    parser.add_argument("--enable_bucket", action="store_true")
    parser.add_argument("--min_bucket_reso", type=int, default=256)
    parser.add_argument("--max_bucket_reso", type=int, default=1024)
    parser.add_argument("--bucket_reso_steps", type=int, default=64)
    parser.add_argument("--clip_skip", type=int)
    parser.add_argument("--noise", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--save_precision", choices=[None, "float", "fp16"])
    parser.add_argument("--max_train_epochs", type=int)
    parser.add_argument("--shuffle_caption", action="store_true")
    parser.add_argument("--caption_dropout_rate", type=float, default=0.0)
    parser.add_argument("--caption_dropout_every_n_epochs", type=int, default=0)
    parser.add_argument("--network_train_unet_only", action="store_true")
    parser.add_argument("--text_encoder_lr", type=float)
    parser.add_argument("--unet_lr", type=float)
    parser.add_argument("--learning_rate", type=float, default=2e-6)
    parser.add_argument("--lr_scheduler", type=str)
    parser.add_argument("--network_module", type=str)
    parser.add_argument("--lr_scheduler_args", type=str, nargs="*")
    parser.add_argument("--optimizer_type", type=str, default="")
    parser.add_argument("--optimizer_args", type=str, nargs="*")
    return parser
"""
FIELDS = [
    Field("optimizer", "Dropdown", choices=("AdamW", "Prodigy", "Adafactor"), default="AdamW"),
    Field("optimizer_args", "Textbox", default=""),
    Field("lr_scheduler", "Dropdown", choices=("constant", "adafactor"), default="constant"),
    Field("learning_rate", "Number", default=1e-4),
    Field("unet_lr", "Number", default=1e-4),
    Field("text_encoder_lr", "Number", default=0),
    Field("max_resolution", "Textbox", default="1024,1024"),
    Field("min_bucket_reso", "Slider", minimum=64, maximum=4096, step=64, default=256),
    Field("max_bucket_reso", "Slider", minimum=64, maximum=4096, step=64, default=2048),
    Field("bucket_reso_steps", "Slider", minimum=1, maximum=128, step=1, default=64),
    Field("enable_bucket", "Checkbox", default=True),
    Field("clip_skip", "Slider", minimum=1, maximum=12, step=1, default=1),
    Field("max_train_epochs", "Textbox", default=""),
    Field("network_weights", "Textbox", default=""),
    Field("epoch", "Number", precision=0, default=1),
    Field("sdxl_cache_text_encoder_outputs", "Checkbox", default=False),
    Field("shuffle_caption", "Checkbox", default=False),
    Field("noise", "Slider", minimum=0, maximum=1, step=0.01, default=0),
    Field("LoRA_type", "Dropdown", choices=("Standard", "Refused", "Silent", "Flux1", "Other"), default="Standard"),
    Field("stop_text_encoder_training", "Slider", minimum=0, maximum=100, step=1, default=0),
    Field("additional_parameters", "Textbox", default=""),
    Field("train_data_dir", "Textbox", default=""),
    Field("output_dir", "Textbox", default=""),
]
SCHEMA = Schema("lora", "lora_gui.py", {field.key: field for field in FIELDS}, presets_list=True)
TRAINING = TextSources({"sdxl_train_network.py": SCRIPT, "train_network.py": NETWORK})
SHELL = Release(
    "v22",
    SCHEMA,
    arguments=arguments_of(TRAINING, "sdxl_train_network.py"),
    gradio=3,
    training=TRAINING,
    gui=TextSources({"lora_gui.py": SHELL_TAB, "library/common_gui.py": COMMON}),
)
LIST = replace(
    SHELL, name="v24", gradio=4, gui=TextSources({"kohya_gui/lora_gui.py": LIST_TAB, "kohya_gui/common_gui.py": COMMON})
)
DATA_FIELD = {"dataset_config": Field("dataset_config", "Textbox", default="")}
WITH_DATA = replace(SHELL, schema=replace(SCHEMA, fields={**SCHEMA.fields, **DATA_FIELD}))
COMPLETE = {field.key: field.default for field in FIELDS if not field.key.endswith("_dir")}


def findings(changes: dict[str, Any], release: Release) -> list[Finding]:
    values = {key: value for key, value in {**COMPLETE, **changes}.items() if value is not ...}
    return check(Preset("mine", "lora", values), release)


def told(changes: dict[str, Any], release: Release) -> set[tuple[str, str, str]]:
    return {(one.level, one.rule, one.key) for one in findings(changes, release)}


@pytest.mark.parametrize("release", [SHELL, LIST], ids=["v22", "v24"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        (
            {"sdxl_cache_text_encoder_outputs": True, "text_encoder_lr": 5e-5},
            {("error", "training-stops", "sdxl_cache_text_encoder_outputs")},
        ),
        ({"sdxl_cache_text_encoder_outputs": True}, set()),
        (
            {"sdxl_cache_text_encoder_outputs": True, "shuffle_caption": True},
            {("error", "cached-captions", "shuffle_caption")},
        ),
        ({"shuffle_caption": True}, set()),
        (
            {"sdxl_cache_text_encoder_outputs": True, "additional_parameters": "--caption_dropout_rate=0.1"},
            {("error", "cached-captions", "additional_parameters")},
        ),
        (
            {"sdxl_cache_text_encoder_outputs": True, "additional_parameters": "--caption_dropout_every_n_epochs=2"},
            {("warning", "cached-captions", "additional_parameters")},  # ignored by every release, refused by none
        ),
        ({"min_bucket_reso": 1280}, {("error", "bucket-range", "min_bucket_reso")}),
        ({"min_bucket_reso": 1280, "enable_bucket": False}, set()),
        ({"min_bucket_reso": 1080}, set()),  # the script makes it a multiple of 64
        ({"max_bucket_reso": 512}, {("error", "bucket-range", "max_bucket_reso")}),
        ({"bucket_reso_steps": 48}, {("error", "bucket-range", "bucket_reso_steps")}),
        ({"max_resolution": "1024x1024"}, {("error", "resolution", "max_resolution")}),
        ({"max_resolution": "1024"}, set()),
        ({"additional_parameters": "network_train_unet_only"}, {("error", "unknown-flag", "additional_parameters")}),
        ({"additional_parameters": "--network_train_unet_only"}, set()),
        ({"additional_parameters": "--network_train_unet"}, set()),  # argparse takes unique beginnings
        (
            {"additional_parameters": "--lr_scheduler constant stray"},
            {("error", "unknown-flag", "additional_parameters")},
        ),
        ({"additional_parameters": "--seed=7 --save_precision=fp16"}, set()),
        ({"additional_parameters": "--seed=7.0"}, {("error", "argument-type", "additional_parameters")}),
        ({"additional_parameters": "--seed --shuffle_caption"}, {("error", "argument-type", "additional_parameters")}),
        ({"additional_parameters": "--save_precision=fp32"}, {("error", "argument-type", "additional_parameters")}),
        ({"additional_parameters": "--shuffle_caption=true"}, {("error", "argument-type", "additional_parameters")}),
        ({"additional_parameters": "--clip_skip=two"}, {("error", "argument-type", "additional_parameters")}),
        ({"stop_text_encoder_training": 50}, {("error", "unknown-flag", "stop_text_encoder_training")}),
        ({"LoRA_type": "Refused"}, {("error", "gui-refuses", "LoRA_type")}),
        ({"LoRA_type": "Silent"}, {("warning", "gui-refuses", "")}),  # perhaps a start that is not known here
        ({"LoRA_type": "Flux1"}, {("error", "lora-type", "LoRA_type")}),
        ({"LoRA_type": "Other"}, {("error", "lora-type", "LoRA_type")}),
        ({"unet_lr": 0}, {("error", "trains-nothing", "unet_lr")}),
        ({"unet_lr": 0, "text_encoder_lr": 1e-4}, set()),
        ({"max_train_epochs": "0"}, {("error", "trains-nothing", "max_train_epochs")}),
        ({"max_train_epochs": 0}, {("error", "trains-nothing", "max_train_epochs")}),
        ({"max_train_epochs": "3"}, set()),
        ({"lr_scheduler": "adafactor"}, {("error", "scheduler", "lr_scheduler")}),
        ({"lr_scheduler": "adafactor", "optimizer": "Adafactor"}, set()),
        ({"optimizer": "Prodigy"}, {("warning", "rate-too-low", "unet_lr")}),
        ({"optimizer": "Prodigy", "unet_lr": 1, "learning_rate": 1}, set()),
        (
            {"optimizer": "Prodigy", "unet_lr": 1, "learning_rate": 1, "text_encoder_lr": 0.5},
            {("error", "rates-differ", "text_encoder_lr")},
        ),
        (
            {
                "optimizer": "Prodigy", "unet_lr": 1, "learning_rate": 1, "text_encoder_lr": 0.5,
                "additional_parameters": "--network_train_unet_only",
            },
            set(),
        ),
        (
            {
                "optimizer": "AdamW", "additional_parameters": "--optimizer_type=DAdaptAdan", "unet_lr": 1,
                "learning_rate": 1, "text_encoder_lr": 0.5,
            },
            {("warning", "rates-differ", "text_encoder_lr")},
        ),
        ({"optimizer_args": "weight_decay=0.05 betas=(0.9,0.99)"}, set()),
        (
            {"optimizer": "Adafactor", "optimizer_args": "relative_step=False shuffle_caption=True"},
            {("error", "optimizer-args", "optimizer_args")},
        ),
        (
            {"additional_parameters": "--lr_scheduler=cosin"},
            {("error", "scheduler", "additional_parameters")},
        ),
        ({"additional_parameters": "--lr_scheduler=mine.Schedule"}, set()),
        ({"additional_parameters": "--lr_scheduler=cosine_with_restarts"}, set()),
        ({"optimizer_args": "d_coef=2"}, {("error", "optimizer-args", "optimizer_args")}),  # Prodigy's
        ({"optimizer_args": "relative_step=False"}, {("error", "optimizer-args", "optimizer_args")}),  # Adafactor's
        ({"optimizer_args": "weight_decy=0.1"}, {("error", "optimizer-args", "optimizer_args")}),
        ({"optimizer_args": "new_in_torch=3"}, {("warning", "optimizer-args", "optimizer_args")}),
        (
            {"additional_parameters": "--lr_scheduler_args T_max=100"},  # of torch's cosine, with constant
            {("error", "optimizer-args", "additional_parameters")},
        ),
        ({"additional_parameters": "--lr_scheduler=cosine --lr_scheduler_args num_cycles=2"}, set()),
        ({"optimizer_args": "lr=0.1"}, {("error", "optimizer-args", "optimizer_args")}),
        (
            {"optimizer": "Adafactor", "optimizer_args": "scale_parameter=False relative_step=False warmup_init=False"},
            set(),
        ),
        ({"optimizer_args": "weight_decay=much"}, {("error", "optimizer-args", "optimizer_args")}),
    ],
)  # fmt: skip
def test_what_the_release_would_do(
    changes: dict[str, Any], expected: set[tuple[str, str, str]], release: Release
) -> None:
    assert told(changes, release) == expected


def test_a_script_that_drops_cached_captions() -> None:
    changes = {"sdxl_cache_text_encoder_outputs": True, "additional_parameters": "--caption_dropout_rate=0.1"}
    drops = "assert group.is_text_encoder_output_cacheable(\n    cache_supports_dropout=True\n), 'no'\n"
    training = TextSources({"sdxl_train_network.py": SCRIPT + drops, "train_network.py": NETWORK})
    assert told(changes, replace(SHELL, training=training)) == set()
    shuffled = {**changes, "shuffle_caption": True}
    assert told(shuffled, replace(SHELL, training=training)) == {("error", "cached-captions", "shuffle_caption")}


@pytest.mark.parametrize("text", ["weight_decay=0.05 ", "weight_decay=0.05  betas=(0.9,0.99)", " a=1", "a = 1", "a"])
def test_blanks_that_the_gui_refuses_from_v24_on(text: str) -> None:
    assert ("error", "gui-refuses", "optimizer_args") in told({"optimizer_args": text}, LIST)


def test_optimizers_by_name() -> None:
    """The release's own list decides; what it does not list is looked for in torch, letter by letter."""
    chosen = 'if optimizer_type == "AdamW".lower() or optimizer_type == "Lion".lower():\n        pass\n'
    training = TextSources({
        "sdxl_train_network.py": SCRIPT, "train_network.py": NETWORK,
        "library/train_util.py": f"import ast\n\ndef get_optimizer(args):\n    {chosen}\n\ndef other(): ...\n",
    })  # fmt: skip
    release = replace(SHELL, training=training)
    wrong = ("error", "optimizer", "optimizer")
    assert {name: wrong in told({"optimizer": name}, release) for name in (
        "AdamW", "lion", "Adam", "adam", "lion8bit", "Prodigy", "mine.Optimizer", "AdaCoor", "", "RAdam"
    )} == {
        "AdamW": False, "lion": False, "Adam": False, "adam": True, "lion8bit": True, "Prodigy": True,
        "mine.Optimizer": False, "AdaCoor": False, "": False, "RAdam": False,
    }  # fmt: skip
    fix = next(one.fix for one in findings({"optimizer": "adam"}, release) if one.rule == "optimizer")
    assert fix == "choose AdamW"
    assert wrong not in told({"optimizer": "adam"}, SHELL), "its list cannot be read"


def test_blanks_that_an_older_gui_takes() -> None:
    assert told({"optimizer_args": "weight_decay=0.05 "}, SHELL) == set()
    assert ("error", "unknown-flag", "optimizer_args") in told({"optimizer_args": "--weight_decay=0.05"}, SHELL)


def test_a_text_is_wrong_where_the_gui_does_not_convert_it() -> None:
    assert told({"clip_skip": "2"}, SHELL) == set()
    assert told({"noise": "0.05"}, SHELL) == {("error", "text-for-number", "noise")}
    assert told({"clip_skip": "2"}, replace(SHELL, gradio=6)) == {("error", "text-for-number", "clip_skip")}
    assert ("error", "text-for-number", "clip_skip") in told({"clip_skip": "2"}, replace(SHELL, gui=None))
    assert ("error", "text-for-number", "epoch") in told({"epoch": "3"}, SHELL)  # loading itself fails


def test_a_fresh_gui_that_holds_a_text() -> None:
    def starting(text: str) -> Release:
        fields = {**SCHEMA.fields, "noise": replace(SCHEMA.fields["noise"], default=text)}
        return replace(SHELL, schema=replace(SCHEMA, fields=fields))

    assert ("error", "release-defect", "noise") in told({"noise": ...}, starting("0"))
    assert ("error", "release-defect", "noise") not in told({"noise": 0}, starting("0"))
    fields = {**SCHEMA.fields, "clip_skip": replace(SCHEMA.fields["clip_skip"], default="1")}
    harmless = replace(SHELL, schema=replace(SCHEMA, fields=fields))
    assert ("error", "release-defect", "clip_skip") not in told({"clip_skip": ...}, harmless)


def test_a_value_lost_in_loading_is_worth_a_note_where_nothing_uses_it() -> None:
    release = replace(SHELL, migration=Migration(whole={"noise": 0, "epoch": 0}))
    assert told({"noise": 0.5}, release) == {("error", "release-defect", "noise")}
    assert ("note", "lost-in-loading", "epoch") in told({"epoch": 1.5}, release)


def test_a_gui_that_cannot_be_followed_gives_no_findings_of_its_own() -> None:
    release = replace(SHELL, gui=TextSources({"lora_gui.py": SHELL_TAB.replace("if enable_bucket:", "if asked():")}))
    assert told({"min_bucket_reso": 1280}, release) == set()


def test_neutral_keys_and_headings_are_notes() -> None:
    values = {"old": False, "older": 0, "oldest": "", "no": "no", "=== Basic ===": "by me", "_comment": "x"}
    assert told(values, SHELL) == {("note", "neutral-key", key) for key in values}
    assert told({"old": True}, SHELL) == {("warning", "unknown-key", "old")}
    assert told({"older": 0.5}, SHELL) == {("warning", "unknown-key", "older")}
    assert told({"anima_checkbox": False}, SHELL) == {("note", "neutral-key", "anima_checkbox")}


@pytest.mark.parametrize("values", [{"flux1_checkbox": True}, {"sd3_checkbox": True}, {"LoRA_type": "Lumina"}])
def test_a_family_that_the_release_lacks_is_refused(values: dict[str, Any]) -> None:
    (key,) = values
    assert told(values, SHELL) == {("error", "refused", key)}


def test_a_path_that_becomes_a_flag_which_the_script_does_not_take() -> None:
    found = [one for one in findings({"network_weights": "/mine/last.safetensors"}, SHELL) if one.level == "error"]
    assert [(one.rule, one.key) for one in found] == [("unknown-flag", "network_weights")]
    assert "--old_weights=/mine/last.safetensors" in found[0].effect


def test_a_file_that_is_no_data_set_configuration(tmp_path: Path) -> None:
    mine, data = tmp_path / "train.toml", tmp_path / "data.toml"
    mine.write_text("learning_rate = 1e-5\n")
    data.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n")
    for path, expected in (
        (mine, {("error", "not-a-data-set", "dataset_config")}),
        (data, set()),
        ("gone.toml", set()),
    ):
        found = told({"dataset_config": str(path)}, WITH_DATA)
        assert {one for one in found if one[1] not in ("path", "unknown-key")} == expected
