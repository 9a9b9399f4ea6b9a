"""What stands on a page, and what must never get onto it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kohya_ext.card import model as models
from kohya_ext.card.changelog import parse
from kohya_ext.card.family import SDXL
from kohya_ext.card.page import YOURS, Author, Page, page
from tests import systems
from tests.tensors.files import write

LORA_KEYS = {"lora_unet_x.lora_down.weight": (4, 8), "lora_te2_y.lora_up.weight": (8, 4)}
METADATA = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_network_dim": "16", "ss_network_alpha": "16.0", "ss_optimizer": "kohya_ext.optim.AdaCoor(eps=1e-08)",
    "ss_learning_rate": "1.0", "ss_unet_lr": "1.0", "ss_text_encoder_lr": "0.5", "ss_epoch": "100",
    "ss_dataset_dirs": json.dumps({"5_ewpp woman": {"n_repeats": 5}, "reg": {}}),
    "ss_sd_model_name": "/home/somebody/models/sd_xl_base_1.0.safetensors", "ss_session_id": "42",
    "ss_min_snr_gamma": "5.0",
    "ss_training_started_at": "1700000000.0", "ss_training_finished_at": "1700009000.0", "ss_noise_offset": "None",
    "ss_resolution": "(1024, 768)", "ss_network_module": "networks.lora", "ss_clip_skip": "2",
}  # fmt: skip
PRESET = {
    "optimizer": "AdaCoor", "optimizer_args": "eps=1e-8", "learning_rate": 1.0, "max_train_epochs": 100,
    "train_batch_size": 1, "lr_scheduler": "constant", "mixed_precision": "fp16", "min_snr_gamma": 5,
    "max_resolution": "1024,1024", "train_text_encoder": True, "noise_offset": 0,
    "additional_parameters": "--enable_ema --ema_decay=0.9995",
}  # fmt: skip


@pytest.fixture
def lora(tmp_path: Path) -> models.Model:
    write(tmp_path / "femme.safetensors", LORA_KEYS, METADATA)
    return models.read(tmp_path / "femme.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path) -> models.Model:
    keys = {"model.diffusion_model.a": (8, 8), "conditioner.embedders.1.model.b": (4, 4), "logit_scale": ()}
    write(tmp_path / "full.safetensors", keys, {"modelspec.architecture": "stable-diffusion-xl-v1-base"})
    return models.read(tmp_path / "full.safetensors")


def made(model: models.Model, author: Author | None = None, site: str = "civitai", **more: Any) -> Page:
    return page(model, author or Author(), site, **{"preset": {}, **more})


def test_what_the_file_records(lora: models.Model) -> None:
    text = made(lora).text
    for row in (
        "LoRA for SDXL 1.0, fp16, 64 weights",
        "| Base model | sd\\_xl\\_base\\_1.0.safetensors |",
        "| Method | LoRA training, rank 16, alpha 16 |",
        "| Optimizer | AdaCoor (eps=1e-08) |",
        "| Learning rate | 1, text encoder 0.5 |",
        "| Epochs | 100 |",
        "| Resolution | 1024x768 |",
        "| Min SNR gamma | 5.0 |",
        "| Trained | 2023-11-15, in 2 h 30 min |",
        "- Clip skip: 2",
        "folders were called `ewpp woman`",
    ):
        assert row in text
    assert "Noise offset" not in text


def test_what_is_private_stays_out(lora: models.Model) -> None:
    assert "somebody" not in made(lora).text and "42" not in made(lora).text


def test_the_preset_fills_in(checkpoint: models.Model) -> None:
    text = made(checkpoint, preset=PRESET).text
    for row in (
        "checkpoint for SDXL 1.0",
        "| Method | full fine-tune, text encoders too |",
        "| Optimizer | AdaCoor (eps=1e-8) |",
        "| Min SNR gamma | 5 |",
        "| EMA | of the same run, decay 0.9995 |",
        "- Size: 1024x1024",
    ):
        assert row in text
    assert "Noise offset" not in text


def test_the_file_wins_over_the_preset(lora: models.Model) -> None:
    assert "| Resolution | 1024x768 |" in made(lora, preset=PRESET).text


def test_order(lora: models.Model) -> None:
    author = Author(description="Makes portraits.", triggers=["femme ewpp"], versions=parse("## 1.0\n- first"))
    text = made(lora, author).text
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# femme", "## Trigger words", "## Generation parameters", "## Usage notes", "## Permissions", "## File",
        "## Training", "## Change log", "### 1.0",
    ]  # fmt: skip
    assert text.index("Makes portraits.") < text.index("## Trigger words") < text.index("`femme ewpp`")


def test_missing_places_are_named(lora: models.Model) -> None:
    assert made(lora).missing == ("description", "triggers", "notes", "permissions")
    full = Author(description="a", triggers=["b"], notes="c", permissions={"sell-images": True, "sell-model": False})
    assert made(lora, full).missing == ()
    assert "- Allowed: sell images" in made(lora, full).text and "- Not allowed: sell it" in made(lora, full).text


def test_front_matter(lora: models.Model, checkpoint: models.Model) -> None:
    yaml = pytest.importorskip("yaml")
    text = made(lora, Author(triggers=['a "b": c', "no"]), "huggingface").text
    found = yaml.safe_load(text.split("---\n")[1])
    assert found["instance_prompt"] == 'a "b": c, no' and found["base_model_relation"] == "adapter"
    assert found["license"] == "openrail++" and "lora" in found["tags"]
    found = yaml.safe_load(made(checkpoint, Author(licence="no"), "huggingface").text.split("---\n")[1])
    assert found["license"] == "no" and "base_model" not in found and "lora" not in found["tags"]
    named = dataclasses.replace(checkpoint, base=SDXL)
    found = yaml.safe_load(made(named, Author(), "huggingface").text.split("---\n")[1])
    assert (found["base_model"], found["base_model_relation"]) == (SDXL.base, "finetune")
    assert not made(lora).text.startswith("---")


def test_the_authors_front_matter_stays(lora: models.Model) -> None:
    before = made(lora, site="huggingface").text.replace(YOURS, f"{YOURS}\nlanguage: en")
    after = made(lora, site="huggingface", before=before).text
    assert f"{YOURS}\nlanguage: en\n---\n" in after


def test_edits_stay(lora: models.Model) -> None:
    before = made(lora).text.replace("(Say in one or two sentences what this model makes.)", "Mine.")
    after = made(lora, Author(description="Other."), before=before)
    assert "\nMine.\n" in after.text and "Other." not in after.text and after.kept == ("description",)


def test_an_average_says_so(tmp_path: Path) -> None:
    found = {"kohya_ext_ema_schedule": "debiased", "kohya_ext_ema_decay": "0.9995"}
    write(tmp_path / "x-ema.safetensors", {"double_blocks.0.a": (2, 2)}, found)
    text = made(models.read(tmp_path / "x-ema.safetensors")).text
    assert "this file is the average of the weights (schedule debiased, decay 0.9995)" in text


NASTY = st.text(max_size=60) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        "a | b\n# c",
        "<!-- kohya-ext end notes -->",
        "---\nx: y",
        "`" * 3,
        "[",
        "9" * 400,
        "{" * 99,
    ]
)


@settings(max_examples=80)
@given(values=st.dictionaries(st.sampled_from([*METADATA, "modelspec.title", "modelspec.description"]), NASTY))
def test_foreign_metadata_is_harmless(tmp_path: Path, values: dict[str, str]) -> None:
    path = tmp_path / "m.safetensors"
    clean = {key: value.encode("utf-8", "replace").decode() for key, value in values.items()}
    write(path, LORA_KEYS, {**METADATA, **clean})
    text = made(models.read(path)).text
    assert "<script" not in text and text.count("<!-- kohya-ext begin") == text.count("<!-- kohya-ext end") == 5
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 7 and len([line for line in text.splitlines() if line.startswith("|--")]) == 2


HOSTILE = {
    "# Owned": "\\# Owned", "- list": "\\- list", "+ list": "\\+ list", "1. one": "1\\. one", "7) seven": "7\\) seven",
    "---": "\\---", "===": "\\===", "```sh": "\\`\\`\\`sh", "~~~": "\\~\\~\\~", "> quote": "&gt; quote",
    "<script>": "&lt;script&gt;",
    "| a | b |": "\\| a \\| b \\|", "[x](http://y)": "\\[x\\](http\\://y)", "see https://y.z": "see https\\://y.z",
    "www.y.z": "www\\.y.z", "a@b.c": "a\\@b.c", "$x$": "\\$x\\$", "a\n# b": "a # b", "a\u2028# b": "a # b",
    "\x1b[2J\u202eb": "\\[2J b", "![x](y)": "!\\[x\\](y)", "*_\\": "\\*\\_\\\\",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_text_stays_text(tmp_path: Path, text: str) -> None:
    """No line of the page begins with what a stranger wrote into the file, unless it is harmless there."""
    written = {"modelspec.description": text, "modelspec.usage_hint": text, "modelspec.title": text, "ss_epoch": text}
    write(tmp_path / "m.safetensors", LORA_KEYS, written)
    lines = made(models.read(tmp_path / "m.safetensors")).text.splitlines()
    assert lines.count(HOSTILE[text]) == 2
    ours = made(models.read(tmp_path / "m.safetensors")).text.count("\n#")
    write(tmp_path / "n.safetensors", LORA_KEYS, dict.fromkeys(written, "x"))
    assert ours == made(models.read(tmp_path / "n.safetensors")).text.count("\n#")


@pytest.mark.skipif(systems.WINDOWS, reason="no file on Windows has a bar in its name")
def test_a_bar_in_a_file_name_begins_no_cell(tmp_path: Path) -> None:
    write(tmp_path / "a|b.safetensors", LORA_KEYS)
    assert "| Name | `a\\|b.safetensors` |" in made(models.read(tmp_path / "a|b.safetensors")).text


@pytest.mark.parametrize("text", ["```\ncode", "~~~~py\n```\n~~~", "a\n   ````\n```"])
def test_a_fence_left_open_ends_with_its_text(lora: models.Model, text: str) -> None:
    fence = {"`": "```", "~": "~~~~"}[text.strip("a\n ")[0]] if not text.startswith("a") else "````"
    assert f"{text}\n{fence}\n<!-- kohya-ext end" in made(lora, Author(description=text)).text
    closed = f"{text}\n{fence}"
    assert f"{closed}\n<!-- kohya-ext end" in made(lora, Author(description=closed)).text


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "x", ""])
def test_odd_times_and_sizes(tmp_path: Path, value: str) -> None:
    odd = dict.fromkeys(("ss_training_started_at", "ss_training_finished_at", "ss_learning_rate", "ss_unet_lr"), value)
    for changed in (odd, {**odd, "ss_training_finished_at": "1700000000"}):
        write(tmp_path / "m.safetensors", LORA_KEYS, {**changed, "ss_resolution": "9" * 5000})
        assert "9" * 400 not in made(models.read(tmp_path / "m.safetensors")).text
