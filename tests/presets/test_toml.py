"""TOML files of sd-scripts: told apart, checked against the script that reads them, and put right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toml

from kohya_ext.core.errors import UsageError
from kohya_ext.presets.dataset_config import dataset_findings, fit_dataset
from kohya_ext.presets.script_choice import script_named, script_of
from kohya_ext.presets.script_config import config_findings, fit_config, settings_of
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.presets.toml_document import TomlDocument, dump_toml, read_document
from kohya_ext.presets.training_rules import training_findings
from kohya_ext.pysource.sources import TextSources
from tests.presets.toml_release import RELEASE

NETWORK = "sdxl_train_network.py"
GOOD = """
# a file by hand
[model]
pretrained_model_name_or_path = "/models/base_xl.safetensors"
[network]
network_module = "networks.lora"
network_dim = 16
network_args = ["conv_dim=4", "conv_alpha=1"]
[training]
learning_rate = 1e-4
unet_lr = 1e-4
max_grad_norm = 1
text_encoder_lr = 5e-5
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1"]
resolution = "1024,1024"
max_train_epochs = 10
mixed_precision = "bf16"
vae = ""
lowram = false
caption_extension = ".txt"
train_batch_size = 2
"""


def document(text: str, tmp_path: Path, name: str = "mine") -> TomlDocument:
    path = tmp_path / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return read_document(path)


def rules(text: str, tmp_path: Path, script: str = NETWORK) -> set[tuple[str, str, str]]:
    found = config_findings(document(text, tmp_path), script, RELEASE)
    return {(one.level, one.rule, one.key) for one in found}


def test_a_right_file_has_no_findings_and_stays_as_it_is(tmp_path: Path) -> None:
    mine = document(GOOD, tmp_path)
    assert config_findings(mine, NETWORK, RELEASE) == []
    fitted = fit_config(mine, NETWORK, RELEASE)
    assert fitted.steps == []
    assert fitted.values == settings_of(mine.content).values
    assert toml.loads(dump_toml(fitted.values)) == fitted.values


@pytest.mark.parametrize(
    ("change", "expected", "fitted"),
    [
        ('learning_rate = "1e-4"', ("error", "text-for-number", "learning_rate"), 1e-4),
        ('unet_lr = ""', ("error", "text-for-number", "unet_lr"), ...),
        ("resolution = 1024", ("error", "resolution", "resolution"), "1024"),
        ("resolution = [1024, 768]", ("error", "resolution", "resolution"), "1024,768"),
        ("train_batch_size = 2.0", ("error", "wrong-type", "train_batch_size"), 2),
        ('enable_bucket = "false"', ("error", "wrong-type", "enable_bucket"), False),
        ('lowram = "false"', ("error", "text-for-switch", "lowram"), False),
        ("max_train_epochs = 10.0", ("error", "not-whole", "max_train_epochs"), 10),
        ('network_dim = "16"', ("error", "text-for-number", "network_dim"), 16),
        ('optimizer_args = "a=1 b=2"', ("error", "text-for-list", "optimizer_args"), ["a=1", "b=2"]),
        ("optimizer_args = [0.1]", ("error", "wrong-type", "optimizer_args"), ["0.1"]),
        ('optimizer_args = ["a 1"]', ("error", "optimizer-args", "optimizer_args"), ["a 1"]),
        ("text_encoder_lr = [1, 0.5]", ("error", "mixed-list", "text_encoder_lr"), [1.0, 0.5]),
        ('lr_warmup_steps = "10%"', ("error", "text-for-number", "lr_warmup_steps"), "10%"),
        ('mixed_precision = "float"', ("error", "not-offered", "mixed_precision"), "float"),
        ('save_precision = "fp32"', ("warning", "not-offered", "save_precision"), "fp32"),
        ("learning_rate = 1.0", ("error", "rate-too-high", "learning_rate"), 1.0),
        ("text_encoder_lr = [1.0, 0.5]", ("error", "rate-too-high", "text_encoder_lr"), [1.0, 0.5]),
        ('huber_schedule = "linear"', ("warning", "not-offered", "huber_schedule"), "linear"),
        ('huber_schedule = "linear"\nloss_type = "huber"', ("error", "not-offered", "huber_schedule"), "linear"),
        ('multires_noise_iterations = "6"', ("error", "text-for-number", "multires_noise_iterations"), 6),
        ("multires_noise_iterations = 6.0", ("error", "not-whole", "multires_noise_iterations"), 6),
        ('optimizer_args = ["d_coef=2"]', ("error", "optimizer-args", "optimizer_args"), ["d_coef=2"]),
        ("max_train_epochs = 0", ("error", "trains-nothing", "max_train_epochs"), 0),
        ('max_grad_norm = "1"', ("warning", "text-for-number", "max_grad_norm"), 1),
        ("optimizer = 'Lion'", ("warning", "renamed-key", "optimizer"), ...),
        ("max_resolution = '64,64'", ("warning", "renamed-key", "max_resolution"), ...),
        ("network-dim = 4", ("warning", "renamed-key", "network-dim"), ...),
        ("learning_rte = 1e-5", ("warning", "unknown-key", "learning_rte"), ...),
        ("learning_rate_te1 = 1e-5", ("warning", "wrong-script", "learning_rate_te1"), ...),
        ("learning_rate_te1 = 0", ("note", "neutral-key", "learning_rate_te1"), ...),
        ("epoch = 3", ("note", "dead-key", "epoch"), ...),
        ("enable_ema = true", ("error", "not-installed", "enable_ema"), True),
    ],
)
def test_one_wrong_setting(change: str, expected: tuple[str, str, str], fitted: Any, tmp_path: Path) -> None:
    key = change.partition("=")[0].strip()
    kept = [line for line in GOOD.splitlines() if not line.startswith(f"{key} ")]
    text = "\n".join([change, *kept])
    assert expected in rules(text, tmp_path)
    others = {one for one in rules(text, tmp_path) if one[2] != key}
    assert others == set()
    assert fit_config(document(text, tmp_path), NETWORK, RELEASE).values.get(key, ...) == fitted


def test_settings_of_kohya_ext_in_a_checkout_that_has_it(tmp_path: Path) -> None:
    text = GOOD.replace("optimizer_type", "#").replace("1e-4", "1").replace("5e-5", "1")
    mine = document(f'enable_ema = true\noptimizer_type = "AdaCoor"\n{text}', tmp_path)
    found = config_findings(mine, NETWORK, replace(RELEASE, patched=True))
    assert {one.level for one in found} <= {"note"}


def test_a_table_inside_a_table_is_ignored_and_moved_up(tmp_path: Path) -> None:
    text = GOOD + "[training.more]\nseed = 7\nclip_skip = 0\n"
    assert ("error", "nested-table", "training.more") in rules(text, tmp_path)
    fitted = fit_config(document(text, tmp_path), NETWORK, RELEASE)
    assert (fitted.values["seed"], [step.action for step in fitted.steps]) == (7, ["moved", "moved"])


def test_captions_that_end_in_txt_are_not_read_by_default(tmp_path: Path) -> None:
    text = GOOD.replace('caption_extension = ".txt"\n', "")
    note = ("note", "caption-files", "caption_extension")
    assert rules(text, tmp_path) == {note}
    assert note not in rules(text + "dataset_config = 'data.toml'\n", tmp_path)


def test_the_last_of_two_counts(tmp_path: Path) -> None:
    text = GOOD + "[more]\nlearning_rate = 1e-5\n"
    assert ("warning", "given-twice", "learning_rate") in rules(text, tmp_path)
    assert settings_of(document(text, tmp_path).content).values["learning_rate"] == 1e-5


def test_a_byte_order_mark_is_named_and_taken_off(tmp_path: Path) -> None:
    text = "\ufeff" + GOOD.lstrip()
    assert ("error", "byte-order-mark", "") in rules(text, tmp_path)
    repairs: list[str] = []
    read_document(tmp_path / "mine.toml", repairs)
    assert repairs == ["line 1: a byte order mark"]


@pytest.mark.parametrize(
    ("line", "said", "value"),
    [
        (r'vae = "C:\models\vae.pt"', "line 2.*backslash in double quotes", r"C:\models\vae.pt"),
        ("lowram = True", "line 2.*lower case", True),
        ("vae = None", "line 2.*lower case", None),
    ],
)
def test_slips_are_located_and_mended(line: str, said: str, value: Any, tmp_path: Path) -> None:
    text = f"seed = 1\n{line} # mine\nclip_skip = 2\n"
    with pytest.raises(UsageError, match=said):
        document(text, tmp_path)
    repairs: list[str] = []
    content = read_document(tmp_path / "mine.toml", repairs).content
    assert content.get(line.partition(" ")[0]) == value
    assert repairs
    assert repairs[0].startswith("line 2: ")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[build-system]\nrequires = []\n", "Python project"),
        ("[[subsets]]\nimage_dir = 'x'\n[general_args.args]\nseed = 1\n", "LoRA_Easy_Training_Scripts"),
        ("[model]\nmodels_dir = 'x'\n[configuration]\nconfig_dir = 'x'\n", "config.toml"),
        ("[[datasets]]\nvideo_directory = 'x'\n", "musubi-tuner"),
        ("[prompt]\nwidth = 1\n[[prompt.subset]]\nprompt = 'x'\n", "sample prompts"),
        ("", "holds no settings"),
    ],
)
def test_files_of_others_are_named(text: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=kind):
        document(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("network_module = 'networks.lora'", "train_network.py"),
        ("network_module = 'networks.lora'\ncache_text_encoder_outputs = true", "sdxl_train_network.py"),
        ("network_module = 'networks.lora'\npretrained_model_name_or_path = 'C:/m/ponyV6.safetensors'", NETWORK),
        ("learning_rate = 1\nlearning_rate_te1 = 1", "sdxl_train.py"),
        ("network_module = 'networks.lora'\ncache_text_encoder_outputs = false", "train_network.py"),
        ("learning_rate = 1\nlearning_rate_te1 = 0", "sdxl_train.py"),
    ],
)
def test_the_script_by_its_settings(text: str, script: str, tmp_path: Path) -> None:
    mine = document(text, tmp_path)
    assert script_of(mine, settings_of(mine.content).values, RELEASE) == script


def test_a_script_by_name() -> None:
    assert script_named("train_network", RELEASE) == "train_network.py"
    with pytest.raises(UsageError, match=r"no training script train_netwrk\.py"):
        script_named("train_netwrk.py", RELEASE)


DATA = """
[general]
enable_bucket = true
caption_extension = ".txt"
[[datasets]]
resolution = [1024, 768]
batch_size = 2
  [[datasets.subsets]]
  image_dir = "/a"
  num_repeats = 3
  [[datasets.subsets]]
  image_dir = "/b"
  caption_dropout_rate = 0
"""


def dataset_rules(text: str, tmp_path: Path) -> set[tuple[str, str, str]]:
    return {(one.level, one.rule, one.key) for one in dataset_findings(document(text, tmp_path), RELEASE)}


def test_a_right_data_set_stays_as_it_is(tmp_path: Path) -> None:
    assert dataset_rules(DATA, tmp_path) == set()
    mine = document(DATA, tmp_path)
    fitted = fit_dataset(mine, RELEASE)
    assert fitted.steps == []
    assert toml.loads(dump_toml(fitted.values)) == mine.content


@pytest.mark.parametrize(
    ("before", "after", "expected", "repaired"),
    [
        ("batch_size = 2", 'batch_size = "2"', ("wrong-type", "datasets[0].batch_size"), "batch_size = 2"),
        ("batch_size = 2", "batch_size = 2.0", ("wrong-type", "datasets[0].batch_size"), "batch_size = 2"),
        ("batch_size = 2", "train_batch_size = 2", ("extra-key", "datasets[0].train_batch_size"), "batch_size = 2"),
        ("[1024, 768]", '"1024,768"', ("wrong-type", "datasets[0].resolution"), "resolution = [1024, 768]"),
        ("num_repeats = 3", "network_multiplier = 1", ("extra-key", "datasets[0].subsets[0].network_multiplier"), ""),
        ("batch_size = 2", "network_multiplier = 1", ("wrong-type", "datasets[0].network_multiplier"), "= 1.0"),
        ("[general]", "seed = 1\n[general]", ("extra-key", "seed"), ""),
        ("[general]", "[settings]\na = 1\n[general]", ("extra-key", "settings"), ""),
        ('image_dir = "/a"', "is_reg = false", ("missing-key", "datasets[0].subsets[0].image_dir"), ""),
        ('image_dir = "/a"', 'metadata_file = "/a"', ("mixed-styles", "datasets[0]"), ""),
        ("batch_size = 2", "min_bucket_reso = 1024", ("bucket-range", "datasets[0].min_bucket_reso"), ""),
        ("batch_size = 2", "max_bucket_reso = 512", ("bucket-range", "datasets[0].max_bucket_reso"), ""),
    ],
)
def test_one_wrong_setting_of_a_data_set(
    before: str, after: str, expected: tuple[str, str], repaired: str, tmp_path: Path
) -> None:
    text = DATA.replace(before, after, 1)
    assert ("error", *expected) in dataset_rules(text, tmp_path)
    fitted = dump_toml(fit_dataset(document(text, tmp_path), RELEASE).values)
    assert repaired in fitted
    if repaired:
        assert dataset_rules(fitted, tmp_path) == set()


def test_masks_for_some_data_sets_only(tmp_path: Path) -> None:
    first = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/a'\nconditioning_data_dir = '/m'\n"
    both = document(f"{first}[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/b'\n", tmp_path)
    asking = "def apply_masked_loss(loss, batch):\n    return batch['conditioning_images']\n"
    assert RELEASE.training is not None
    texts = {"library/config_util.py": RELEASE.training.read("library/config_util.py") or ""}

    def told(code: str, mine: TomlDocument) -> set[str]:
        training = TextSources({**texts, "library/custom_train_functions.py": code})
        return {one.key for one in dataset_findings(mine, replace(RELEASE, training=training)) if "mask" in one.rule}

    assert told(asking, both) == {"datasets[1]"}
    assert told(asking.replace("    return", '    if "conditioning_images" in batch:\n        return'), both) == set()
    assert told(asking, document(first, tmp_path)) == set()


def test_images_that_are_never_trained(tmp_path: Path) -> None:
    text = DATA.replace('"/b"', '"/a"').replace("num_repeats = 3", "num_repeats = 0")
    assert dataset_rules(text, tmp_path) == {
        ("warning", "no-repeats", "datasets[0].subsets[0].num_repeats"),
        ("warning", "same-images", "datasets[0].subsets[1].image_dir"),
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bucket_reso_steps": 64.5}, {"bucket_reso_steps"}),
        ({"bucket_reso_steps": 64}, set()),
        ({"network_dim": 8.5}, {"network_dim"}),
        ({"clip_skip": 2.5}, set()),  # nothing of the data set, and nothing counts with it
        ({"learning_rate": 1.0, "unet_lr": 1.0}, set()),
    ],
)
def test_fractions_in_the_file_that_a_gui_writes(given: dict[str, Any], expected: set[str]) -> None:
    script = "sdxl_train_network.py"
    run = ScriptRun(script, {"network_module": "networks.lora", **given}, RELEASE.arguments_of(script))
    assert {one.key for one in training_findings(run, given, RELEASE) if one.rule == "not-whole"} == expected
