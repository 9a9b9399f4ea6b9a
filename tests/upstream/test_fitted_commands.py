"""Fitting changes no training that the release would have run: the commands of raw and fitted presets, side by side.

The presets are ours, in the manner of those that users publish: half filled, of another era, with odd values. What
may differ is named with each, and only where the release itself needs it.
"""

from __future__ import annotations

from typing import Any

import pytest

from kohya_ext.presets.check import loaded_form
from kohya_ext.presets.document import as_preset
from kohya_ext.presets.fit import fit
from kohya_ext.presets.launch_command import GuiRefusesError, commands_of_form
from kohya_ext.presets.migration import LoadError
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Tab, offering_ours
from kohya_ext.presets.script_run import ScriptRun, script_run
from kohya_ext.presets.start import with_numbers
from kohya_ext.presets.warm_up import drop_refused_warm_up
from tests.upstream.test_preset_cases import ALL, FLUX, FLUXES, NEW, SDXL, release

pytestmark = pytest.mark.upstream

OLD = ("v22.3.1", "v24.1.7")
TI = {"token_string": "zxc", "init_word": "cat", "num_vectors_per_token": 4, "template": "style template"}
FINETUNE: dict[str, Any] = {
    "sdxl_checkbox": True,
    "optimizer": "Adafactor",
    "optimizer_args": "scale_parameter=False relative_step=False warmup_init=False",
    "learning_rate": 4e-7,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup": 10,
    "epoch": 5,
    "max_resolution": "1024,1024",
    "mixed_precision": "bf16",
    "xformers": "xformers",
}
# What a release cannot take as it stands, and what comes of it.
CASES: list[tuple[Tab, dict[str, Any], tuple[str, ...], set[str]]] = [
    ("lora", SDXL, ALL, set()),
    ("lora", {"optimizer": "AdamW8bit", "learning_rate": 1e-4, "max_train_epochs": "10"}, ALL, set()),
    ("lora", SDXL | {"lr_scheduler": "cosine", "lr_warmup": None, "epoch": None, "unet_lr": None}, ALL, set()),
    ("lora", SDXL | {"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "conv_dim": 100000}, ALL, set()),
    ("lora", SDXL | {"caption_extension": ".none-use-foldername"}, OLD, set()),
    ("lora", SDXL | {"caption_extension": ".tags"}, OLD, set()),
    ("lora", SDXL | {"use_wandb": True, "no_token_padding": False, "== about ==": "mine"}, ALL, set()),
    ("lora", SDXL | {"optimizer": "Prodigy", "optimizer_args": "decouple=True d_coef=0.8", "lr_warmup": 0}, ALL, set()),
    ("lora", SDXL | {"optimizer_args": " weight_decay=0.05  eps=1e-8 "}, ("v22.3.1",), set()),
    ("lora", SDXL | {"max_train_epochs": 0}, ("v22.3.1",), {"max_train_epochs"}),  # 0 would train nothing
    ("lora", SDXL | {"noise_offset": "0.05", "clip_skip": "2", "keep_tokens": "1"}, ALL, set()),
    (
        "lora",
        SDXL | {"xformers": True, "network_dropout": 0.1, "min_snr_gamma": 5, "scale_weight_norms": 1},
        ALL,
        set(),
    ),
    (
        "lora",
        SDXL | {"LoRA_type": "LoCon", "conv_dim": 8, "conv_alpha": 1, "stop_text_encoder_training_pct": 0},
        ALL,
        set(),
    ),
    ("lora", SDXL | {"lr_warmup": 10}, ("v22.3.1",), set()),  # its GUI does not pass it on
    ("lora", SDXL | {"lr_warmup": 10}, NEW, {"lr_warmup_steps"}),  # training would stop
    ("lora", SDXL | {"lr_warmup": None}, NEW, {"lr_warmup_steps"}),  # the tab's own default, 10
    ("lora", SDXL | {"lr_warmup": 10, "lr_scheduler": "cosine", "optimizer": "Adafactor"}, ALL, {"lr_warmup_steps"}),
    ("lora", SDXL | {"lr_warmup": 10, "lr_scheduler": "constant_with_warmup"}, ALL, set()),
    ("lora", FLUX, FLUXES, set()),
    ("lora", FLUX | {"split_mode": False, "blocks_to_swap": 20, "timestep_sampling": "shift"}, FLUXES, set()),
    ("finetune", FINETUNE, ALL, set()),
    ("finetune", FINETUNE | {"sdxl_checkbox": False, "lr_warmup": "10", "train_text_encoder": True}, ALL, set()),
    ("dreambooth", {"sdxl": True, "epoch": 4, "learning_rate": 1e-5, "optimizer": "Lion", "lr_warmup": 0}, ALL, set()),
    ("dreambooth", {"v2": True, "epoch": "2", "learning_rate": "1e-6", "save_every_n_epochs": "1"}, NEW, set()),
    ("ti", {"epoch": 1, "learning_rate": 1e-5, "optimizer": "AdamW8bit", "lr_warmup": 0, **TI}, ALL, set()),
]


def training(values: dict[str, Any], one: Release) -> ScriptRun | None:
    """What the script gets when the GUI loads the settings and is started; None where it refuses."""
    try:
        form = with_numbers(loaded_form(one.migration.apply(values), one), one)
        result = commands_of_form(form, one)
    except (GuiRefusesError, LoadError):
        return None
    assert result is not None
    return script_run(result, one)


@pytest.mark.parametrize(("tab", "values", "revisions", "may"), CASES)
def test_raw_and_fitted_train_alike(
    tab: Tab, values: dict[str, Any], revisions: tuple[str, ...], may: set[str]
) -> None:
    given = {key: value for key, value in values.items() if value is not None}
    for revision in revisions:
        one = release(revision, tab)
        schema = offering_ours(one.schema)
        fitted = fit(
            as_preset(given, "mine", tab), schema, arguments=one.flags, migration=one.migration, gradio=one.gradio
        )
        drop_refused_warm_up(fitted, one)
        raw, new = training(given, one), training(fitted.values, one)
        assert raw is not None, revision
        assert new is not None, revision
        assert (raw.script, raw.strays) == (new.script, new.strays)
        differing = {key for key in {**raw.given, **new.given} if raw.value(key) != new.value(key)}
        assert differing == may, revision
