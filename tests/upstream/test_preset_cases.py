"""Presets as users really have them, against the real releases: caught where training stops, left alone where not."""

from __future__ import annotations

import os
from typing import Any

import pytest

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.check import check
from kohya_ext.presets.document import Preset
from kohya_ext.presets.fit import fit
from kohya_ext.presets.migration import read_migration
from kohya_ext.presets.release import SCRIPTS, Release
from kohya_ext.presets.schema import Tab, offering_ours, read_schema
from kohya_ext.pysource.arguments import arguments_of
from tests.upstream.presets_trees import GitSources
from tests.upstream.trees import git

pytestmark = pytest.mark.upstream

SDXL: dict[str, Any] = {
    "LoRA_type": "Standard",
    "sdxl": True,
    "optimizer": "AdamW8bit",
    "learning_rate": 1e-4,
    "unet_lr": 1e-4,
    "text_encoder_lr": 0,
    "max_resolution": "1024,1024",
    "mixed_precision": "bf16",
    "network_dim": 16,
    "max_train_epochs": 10,
    "cache_latents": True,
    "caption_extension": ".txt",
    "epoch": 1,
    "save_every_n_epochs": 1,
    "lr_scheduler": "constant",
    "lr_warmup": 0,
    "noise_offset": 0,
}
FLUX: dict[str, Any] = {
    "LoRA_type": "Flux1",
    "flux1_checkbox": True,
    "optimizer": "AdamW8bit",
    "learning_rate": 2e-4,
    "unet_lr": 2e-4,
    "text_encoder_lr": 0,
    "flux1_cache_text_encoder_outputs": True,
    "mixed_precision": "bf16",
    "max_resolution": "512,512",
    "lr_scheduler": "constant",
    "lr_warmup": 0,
    "epoch": 2,
    "save_every_n_epochs": 1,
    "noise_offset": 0,
}
WARMED = ("error", "scheduler", "lr_warmup")
DROPPED = {"LoRA_type": "LyCORIS/LoKr", "conv_dim": 8, "module_dropout": 0.1, "LyCORIS_preset": "full"}
TEXTS = {"noise_offset": "0.05", "seed": "7", "clip_skip": "2", "keep_tokens": "1", "gradient_accumulation_steps": "2"}
GRADIO = {"v22.3.1": 3, "v24.1.7": 4, "v25.2.1": 5, "v26.0.0": 5}
ALL, NEW, FLUXES = tuple(GRADIO), ("v24.1.7", "v25.2.1", "v26.0.0"), ("v25.2.1", "v26.0.0")
RELEASES: dict[tuple[str, str], Release] = {}


def release(revision: str, tab: Tab) -> Release:
    if (revision, tab) not in RELEASES:
        sources = GitSources(revision)
        training: GitSources = sources
        if "sd-scripts/train_network.py" not in sources.texts and "train_network.py" not in sources.texts:
            commit = git(os.environ["KOHYA_SS_GIT"], "rev-parse", f"{revision}:sd-scripts").strip()
            try:
                training = GitSources(commit, os.environ["SD_SCRIPTS_GIT"])
            except Exception:  # the submodule's commit is in no public clone of today
                training = GitSources("main", os.environ["SD_SCRIPTS_GIT"])
        schema = read_schema(sources, tab, patched=False)
        assert schema is not None
        RELEASES[revision, tab] = Release(
            revision,
            schema,
            read_migration(sources),
            arguments_of(training, SCRIPTS[tab][0]),
            GRADIO[revision],
            training=training,
            gui=sources,
        )
    return RELEASES[revision, tab]


def told(values: dict[str, Any], revision: str, tab: Tab = "lora") -> set[tuple[str, str, str]]:
    found = check(Preset("mine", tab, values), release(revision, tab))
    return {(one.level, one.rule, one.key) for one in found if one.rule not in ("missing-key", "zeroed")}


@pytest.mark.parametrize(
    ("values", "revisions", "expected"),
    [
        (SDXL, ALL, None),
        (FLUX, FLUXES, None),
        (SDXL | TEXTS | {"max_train_epochs": "10", "max_train_steps": ""}, ("v22.3.1",), None),
        (FLUX, ("v22.3.1", "v24.1.7"), ("error", "refused", "flux1_checkbox")),
        (
            SDXL | {"sdxl_cache_text_encoder_outputs": True, "text_encoder_lr": 5e-5},
            ALL,
            ("error", "training-stops", "sdxl_cache_text_encoder_outputs"),
        ),
        (SDXL | {"optimizer_args": "weight_decay=0.05 "}, NEW, ("error", "gui-refuses", "optimizer_args")),
        (SDXL | {"optimizer_args": "weight_decay=0.05 "}, ("v22.3.1",), None),
        (
            SDXL | {"optimizer": "Lion8bit", "optimizer_args": "betas='0.95,0.98'"},
            NEW,
            ("error", "optimizer-args", "optimizer_args"),
        ),
        (SDXL | {"optimizer": "Lion8bit", "optimizer_args": "betas='0.95,0.98'"}, ("v22.3.1",), None),  # the shell's
        (
            SDXL | {"additional_parameters": "network_train_unet_only"},
            ALL,
            ("error", "unknown-flag", "additional_parameters"),
        ),
        (FLUX | {"LoRA_type": "Standard"}, FLUXES, ("error", "gui-refuses", "LoRA_type")),
        (SDXL | {"enable_bucket": True, "min_bucket_reso": 1280}, ALL, ("error", "bucket-range", "min_bucket_reso")),
        (SDXL | {"max_train_epochs": 0}, ("v22.3.1",), ("error", "trains-nothing", "max_train_epochs")),
        (SDXL | {"max_train_epochs": 0}, NEW, None),
        (SDXL | {"seed": "-1"}, ("v22.3.1",), ("error", "training-stops", "seed")),
        (SDXL | {"use_wandb": "", "wandb_api_key": "False"}, ALL, None),
        (SDXL | {"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "conv_dim": 100000}, ALL, None),
        (SDXL | {"lr_warmup": 10}, NEW, WARMED),
        (SDXL | {"lr_warmup": 10}, ("v22.3.1",), None),  # the GUI drops it
        (SDXL | {"lr_warmup": 10, "lr_scheduler": "cosine", "optimizer": "Adafactor"}, ALL, WARMED),
        (
            SDXL | {"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0},
            ALL,
            ("error", "training-stops", "persistent_data_loader_workers"),
        ),
        (SDXL | DROPPED, ("v22.3.1", "v24.1.7"), ("error", "training-stops", "module_dropout")),
        (SDXL | DROPPED, FLUXES, None),
        (SDXL | DROPPED | {"conv_dim": 0}, ALL, None),
        (SDXL | {"LoRA_type": "LyCORIS/iA3"}, FLUXES, ("error", "training-stops", "LoRA_type")),
        (SDXL | {"LoRA_type": "LyCORIS/iA3"}, ("v22.3.1", "v24.1.7"), None),
        (SDXL | {"optimizer": "Prodigy", "text_encoder_lr": 5e-5}, ALL, ("error", "rates-differ", "text_encoder_lr")),
        (
            FLUX | {"train_t5xxl": True, "text_encoder_lr": 5e-5},
            FLUXES,
            ("error", "training-stops", "train_t5xxl"),
        ),
        (
            SDXL
            | {"noise_offset": 0.05, "noise_offset_type": "Multires", "adaptive_noise_scale": 0.005}
            | {"multires_noise_iterations": 6, "multires_noise_discount": 0.2},
            ("v24.1.7",),
            None,
        ),
    ],
)
def test_cases(values: dict[str, Any], revisions: tuple[str, ...], expected: tuple[str, str, str] | None) -> None:
    """expected: a finding that has to be there; None = no error at all."""
    for revision in revisions:
        found = told(values, revision)
        if expected is None:
            assert [one for one in found if one[0] == "error"] == [], revision
        else:
            assert expected in found, revision


def test_sdxl_dreambooth_of_v22_never_trains_its_text_encoders() -> None:
    values = {"sdxl": True, "epoch": 1, "learning_rate": 1e-5, "learning_rate_te1": 5e-6, "learning_rate_te2": 5e-6}
    found = told(values | {"optimizer": "AdamW8bit", "stop_text_encoder_training": 50}, "v22.3.1", "dreambooth")
    assert ("error", "unknown-flag", "stop_text_encoder_training") in found
    assert ("warning", "release-defect", "learning_rate_te1") in found


@pytest.mark.parametrize("revision", FLUXES)
def test_a_fresh_gui_holds_a_text_as_warm_up(revision: str) -> None:
    values = {"sdxl_checkbox": True, "optimizer": "AdamW", "learning_rate": 1e-6, "max_resolution": "1024,1024"}
    defect = ("error", "release-defect", "lr_warmup")
    assert defect in told(values, revision, "finetune")
    assert defect not in told({**values, "lr_warmup": 0}, revision, "finetune")


@pytest.mark.parametrize("revision", ALL)
def test_fitting_keeps_what_is_trained_or_refuses(revision: str) -> None:
    one = release(revision, "lora")

    def fitted(values: dict[str, Any]) -> dict[str, Any]:
        schema = offering_ours(one.schema)
        kept = fit(Preset("mine", "lora", values), schema, arguments=one.flags, gradio=one.gradio)
        return kept.values

    assert fitted(SDXL | {"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000})["network_dim"] == 100000
    assert fitted(SDXL | {"caption_extension": ".none-use-foldername"})["caption_extension"] != ".txt"
    if revision not in FLUXES:
        with pytest.raises(UnsupportedError, match="cannot train Flux"):
            fitted(FLUX)
