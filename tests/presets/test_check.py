from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.check import check
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.fit import fit
from kohya_ext.presets.migration import Migration
from kohya_ext.presets.release import Release, pinned_gradio, read_release, refuses_no_upscale, wants_cached_latents
from kohya_ext.presets.schema import Field, Schema
from kohya_ext.pysource.arguments import Argument
from kohya_ext.pysource.sources import TextSources
from tests.presets import guis

OPTIMIZERS = ("AdamW", "AdamW8bit", "AdamWScheduleFree", "Adafactor", "AdaCoor")
FIELDS = [
    Field("optimizer", "Dropdown", choices=OPTIMIZERS, default="AdamW"),
    Field("optimizer_args", "Textbox", default=""),
    Field("learning_rate", "Number", minimum=0, maximum=1, default=1e-6),
    Field("learning_rate_te1", "Number", minimum=0, maximum=1, default=1e-6),
    Field("epoch", "Number", precision=0, default=1),
    Field("max_train_steps", "Number", precision=0, default=0),
    Field("clip_skip", "Slider", minimum=1, maximum=12, step=1, default=1),
    Field("cache_latents", "Checkbox", default=False),
    Field("random_crop", "Checkbox", default=False),
    Field("full_fp16", "Checkbox", default=False),
    Field("full_bf16", "Checkbox", default=False),
    Field("sdxl_checkbox", "Checkbox", default=True),
    Field("sdxl_cache_text_encoder_outputs", "Checkbox", default=False),
    Field("shuffle_caption", "Checkbox", default=False),
    Field("fused_backward_pass", "Checkbox", default=False),
    Field("gradient_accumulation_steps", "Number", default=1),
    Field("mixed_precision", "Dropdown", choices=("no", "fp16", "bf16"), default="fp16"),
    Field("caption_extension", "Dropdown", choices=(".txt", ".caption"), default=".txt"),
    Field("additional_parameters", "Textbox", default=""),
    Field("crossed", "Checkbox", default=False, wired_to="epoch"),
    Field("output_dir", "Textbox", default=""),
    Field("huggingface_token", "Textbox", default=""),
]
SCHEMA = Schema("finetune", "finetune_gui.py", {field.key: field for field in FIELDS}, presets_list=True)
RELEASE = Release("v0", SCHEMA, gradio=5, patched=True)
COMPLETE: dict[str, Any] = {
    field.key: field.default for field in FIELDS if field.key not in ("crossed", "output_dir", "huggingface_token")
}


def findings(changes: dict[str, Any], release: Release = RELEASE) -> list[Finding]:
    values = {key: value for key, value in {**COMPLETE, **changes}.items() if value is not ...}
    return check(Preset("mine", "finetune", values), release)


def rules(changes: dict[str, Any], release: Release = RELEASE) -> set[tuple[str, str, str]]:
    return {(finding.level, finding.rule, finding.key) for finding in findings(changes, release)}


def test_a_complete_valid_preset_has_no_findings() -> None:
    assert findings({}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nonsense": 1}, ("warning", "unknown-key", "nonsense")),
        ({"no_token_padding": True}, ("note", "dead-key", "no_token_padding")),
        ({"random_crop": "false"}, ("error", "text-for-switch", "random_crop")),
        ({"random_crop": " "}, ("error", "text-for-switch", "random_crop")),
        ({"random_crop": "True"}, ("warning", "text-for-switch", "random_crop")),
        ({"random_crop": ""}, ("note", "text-for-switch", "random_crop")),
        ({"epoch": "3"}, ("error", "text-for-number", "epoch")),
        ({"clip_skip": "1"}, ("error", "text-for-number", "clip_skip")),
        ({"learning_rate_te1": "1e-6"}, ("error", "text-for-number", "learning_rate_te1")),
        ({"learning_rate": -1}, ("error", "out-of-range", "learning_rate")),
        ({"clip_skip": 20}, ("note", "out-of-range", "clip_skip")),
        ({"epoch": float("inf")}, ("error", "not-finite", "epoch")),
        ({"caption_extension": ".txt2"}, ("error", "not-offered", "caption_extension")),
        ({"epoch": None}, ("warning", "null", "epoch")),
        ({"epoch": [1]}, ("error", "wrong-type", "epoch")),
        ({"epoch": ...}, ("warning", "missing-key", "epoch")),
        ({"crossed": True}, ("error", "crossed-wire", "crossed")),
        ({"huggingface_token": "hf_x"}, ("error", "secret", "huggingface_token")),
        ({"output_dir": "/home/me"}, ("warning", "path", "output_dir")),
        ({"learning_rate": 1}, ("error", "rate-too-high", "learning_rate")),
        ({"optimizer": "AdaCoor", "learning_rate": 1}, ("error", "adacoor-rate", "learning_rate_te1")),
        ({"cache_latents": True, "random_crop": True}, ("error", "cached-latents", "random_crop")),
        ({"full_fp16": True}, ("warning", "full-fp16", "full_fp16")),
        ({"full_bf16": True}, ("error", "precision", "full_bf16")),
        ({"epoch": True}, ("warning", "wrong-type", "epoch")),
        ({"optimizer_args": True}, ("warning", "wrong-type", "optimizer_args")),
        ({"epoch": 1.5}, ("warning", "rounded", "epoch")),
        ({"optimizer": ...}, ("warning", "zeroed", "optimizer")),
        ({"additional_parameters": "--wandb_api_key=x"}, ("error", "secret", "additional_parameters")),
        ({"optimizer_args": "hf_" + "x" * 30}, ("error", "secret", "optimizer_args")),
        ({"additional_parameters": "--vae /my/vae"}, ("warning", "path", "additional_parameters")),
        ({"additional_parameters": "--ema_decay=0.9"}, ("warning", "ema", "additional_parameters")),
        ({"additional_parameters": "--save_best"}, ("warning", "validation", "additional_parameters")),
        (
            {"additional_parameters": "--enable_ema --ema_exp_beta=1 --ema_schedule=exp"},
            ("error", "ema", "additional_parameters"),
        ),
        *(
            ({"additional_parameters": f"--enable_ema {words}"}, ("error", "ema", "additional_parameters"))
            for words in (
                "--ema_decay=1.5",
                "--ema_decay",
                "--ema_schedule=foo",
                "--ema_schedule power",
                "--ema_sigma_rel=.1",
                "--ema_update_every 0",
                "--ema_dcay=0.999",
                "--kohya_ext_log_every=often",
            )
        ),
        ({"additional_parameters": "--enable_ema=true"}, ("error", "ema", "additional_parameters")),
        (
            {"additional_parameters": "--enable_ema", "optimizer": "AdamWScheduleFree"},
            ("error", "ema", "additional_parameters"),
        ),
        *(
            ({"additional_parameters": f"--enable_ema {words}", **more}, ("error", "ema", "additional_parameters"))
            for words, more in (
                ("--deepspeed --offload_optimizer_device=nvme", {}),
                ("--ema_start_step=500", {"max_train_steps": 500}),
                ("--ema_snapshot_keep=3", {}),
            )
        ),
        ({"additional_parameters": "--optimizer_type AdaCoor"}, ("error", "adacoor-rate", "learning_rate")),
        ({"additional_parameters": "--cache_latents", "random_crop": True}, ("error", "cached-latents", "random_crop")),
        (
            {"additional_parameters": "--fused_backward_pass", "optimizer": "AdaCoor", "learning_rate": 1},
            ("error", "fused-fp16", "additional_parameters"),
        ),
        ({"fused_backward_pass": True}, ("error", "fused-optimizer", "fused_backward_pass")),
        (
            {"fused_backward_pass": True, "optimizer": "Adafactor", "gradient_accumulation_steps": 2},
            ("error", "fused-accumulation", "fused_backward_pass"),
        ),
    ],
)
def test_each_fault_is_found(changes: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert expected in rules(changes)


def test_flags_of_ours_are_none_that_the_script_refuses() -> None:
    words = "--enable_ema --ema_decay 0.999 --kohya_ext_validate held-out --save_best --kohya_ext_log_every=5"
    release = replace(RELEASE, arguments={"seed": Argument("--seed", "seed", "int")})
    assert not findings({"additional_parameters": words}, release)
    assert rules({"additional_parameters": "--saved_best"}, release)


@pytest.mark.parametrize(
    ("rate", "level", "says"),
    [
        (1e-5, "error", "learns next to nothing"),
        (1e-12, "error", "learns next to nothing"),
        (3, "note", "as far as AdamW at 1.3e-05"),
        (22, "note", "as far as AdamW at 9.8e-05"),
        (5000, "error", "destroyed"),
    ],
)
def test_a_rate_of_ours_is_told_in_that_of_adamw(rate: float, level: str, says: str) -> None:
    [found] = of_the_rate({"optimizer": "AdaCoor", "learning_rate": rate})
    assert found.level == level
    assert says in found.effect


def test_a_rate_of_ours_is_told_by_the_eps_of_the_preset() -> None:
    [found] = of_the_rate({"optimizer": "AdaCoor", "learning_rate": 3, "optimizer_args": "eps=1e-10"})
    assert "as far as AdamW at 1.3e-06" in found.effect
    for nonsense in ("eps=nonsense", "eps=-1", "eps=0", "eps=inf", "eps="):
        [found] = of_the_rate({"optimizer": "AdaCoor", "learning_rate": 3, "optimizer_args": nonsense})
        assert "as far as AdamW at 1.3e-05" in found.effect


def of_the_rate(changes: dict[str, Any], release: Release = RELEASE) -> list[Finding]:
    found = findings({"learning_rate_te1": 1, **changes}, release)
    return [one for one in found if one.rule == "adacoor-rate"]


def test_a_rate_of_1_is_right_where_the_optimizer_finds_its_own() -> None:
    auto = {"optimizer": "AdaCoor", "optimizer_args": "eps=1e-8 auto_lr=True momentum=0.9"}
    assert not of_the_rate({**auto, "learning_rate": 1})
    for rate, level, words in (
        (1e-4, "error", "next to nothing"),
        (0.5, "note", "0.5 multiplies it"),
        (30, "warning", ""),
    ):
        [found] = of_the_rate({**auto, "learning_rate": rate})
        assert found.level == level and "finds its rate" in found.effect and words in found.effect
        assert "AdamW" not in found.effect and "set it to 1" in found.fix
    [found] = of_the_rate({**auto, "optimizer_args": "auto_lr=False", "learning_rate": 3})
    assert "as far as AdamW" in found.effect


def test_the_fix_for_a_rate_of_adamw_goes_by_the_steps() -> None:
    changes = {"optimizer": "AdaCoor", "learning_rate": 1e-4, "max_train_steps": 500, "max_train_epochs": 0}
    [found] = of_the_rate(changes)
    assert "in 500 steps" in found.effect
    assert "--learning_rate 11 into the additional parameters" in found.fix  # the field ends at 1


def test_a_lora_is_told_which_rate_is_the_usual_one() -> None:
    lora = replace(RELEASE, schema=replace(SCHEMA, tab="lora"))
    assert not of_the_rate({"optimizer": "AdaCoor", "learning_rate": 1}, lora)  # the guide's
    [found] = of_the_rate({"optimizer": "AdaCoor", "learning_rate": 3}, lora)
    assert found.level == "note" and "AdamW at 1.3e-05" in found.effect and "--learning_rate 22" in found.fix


def test_every_finding_says_what_happens_and_the_fix_and_hides_secrets() -> None:
    found = findings({"huggingface_token": "hf_secret", "nonsense": 1, "epoch": "x"})
    assert all(finding.effect and finding.fix for finding in found)
    assert "hf_secret" not in str([finding.as_json() for finding in found])


def test_older_gradio_only_warns_of_values_not_offered() -> None:
    old = replace(RELEASE, gradio=3)
    assert ("warning", "not-offered", "caption_extension") in rules({"caption_extension": ".txt2"}, old)
    assert ("error", "out-of-range", "clip_skip") in rules({"clip_skip": 20}, replace(RELEASE, gradio=6))


def test_a_migration_of_the_release_comes_first() -> None:
    migrating = replace(RELEASE, migration=Migration(whole={"epoch": 0}))
    assert findings({"epoch": "3"}, migrating) == []
    assert rules({"epoch": [1]}, migrating) == {("error", "load-fails", "epoch")}


def test_a_release_that_zeroes_absent_keys_is_named() -> None:
    zeroing = replace(RELEASE, migration=Migration(zeroed=frozenset({"learning_rate", "epoch"})))
    assert ("error", "zeroed", "learning_rate") in rules({"learning_rate": ...}, zeroing)
    assert ("warning", "zeroed", "epoch") in rules({"epoch": ...}, zeroing)
    assert ("warning", "missing-key", "clip_skip") in rules({"clip_skip": ...}, zeroing)


def test_values_that_loading_changes() -> None:
    whole = replace(RELEASE, migration=Migration(whole={"epoch": 0, "clip_skip": 1}, takes_wandb=True))
    assert rules({"epoch": 0.5}, whole) == {("error", "release-defect", "epoch")}
    assert rules({"epoch": "3.0"}, whole) == {("error", "lost-in-loading", "epoch")}
    assert rules({"clip_skip": "many"}, whole) == {("warning", "lost-in-loading", "clip_skip")}
    assert rules({"epoch": "3"}, whole) == set()
    assert ("warning", "lost-in-loading", "use_wandb") in rules({"use_wandb": True}, whole)


def test_a_text_where_the_script_takes_a_number() -> None:
    release = replace(RELEASE, arguments={"optimizer_args": Argument("--optimizer_args", "optimizer_args", "int")})
    assert ("error", "argument-type", "optimizer_args") in rules({"optimizer_args": "many"}, release)
    assert rules({"optimizer_args": "3"}, release) == set()


def test_prepared_buckets_without_upscaling() -> None:
    more = {"bucket_no_upscale": "Checkbox", "create_buckets": "Checkbox", "use_latent_files": "Textbox"}
    fields = {**SCHEMA.fields, **{key: Field(key, component) for key, component in more.items()}}
    release = replace(RELEASE, schema=replace(SCHEMA, fields=fields), refuses_no_upscale=True)
    prepared: dict[str, Any] = {"bucket_no_upscale": True, "create_buckets": True, "use_latent_files": "Yes"}
    assert rules(prepared, release) == {("error", "release-defect", "bucket_no_upscale")}
    assert rules({**prepared, "use_latent_files": "No"}, release) == set()
    assert rules(prepared, replace(release, refuses_no_upscale=False)) == set()
    text = "class FineTuningDataset(X):\n    def __init__(self):\n        assert not bucket_no_upscale"
    assert refuses_no_upscale(TextSources({"library/train_util.py": text}))
    assert not refuses_no_upscale(TextSources({}))


def test_our_flags_and_optimizer_need_our_hooks() -> None:
    bare = replace(RELEASE, patched=False)
    found = rules({"additional_parameters": "--enable_ema", "optimizer": "AdaCoor", "learning_rate": 1}, bare)
    assert {("error", "not-installed", "additional_parameters"), ("error", "not-installed", "optimizer")} <= found


def test_flags_that_the_script_does_not_take_are_named(tmp_path: Path) -> None:
    checkout = guis.write(guis.REGISTRY, tmp_path)
    release = replace(read_release(checkout, "finetune"), schema=SCHEMA, patched=True)
    taken = rules({"additional_parameters": "--fused_backward_pass --enable_ema", "optimizer": "Adafactor"}, release)
    assert taken == set()
    refused = rules({"additional_parameters": "--no_such_flag=1"}, release)
    assert refused == {("error", "unknown-flag", "additional_parameters")}


@pytest.mark.parametrize(
    ("text", "effect", "fix"),
    [
        ("--lowram--no_half_vae", "stops", "--lowram --no_half_vae"),
        ("--seed=5--lowram", "stops", "--seed=5 --lowram"),
        ("--seed 5--lowram", "stops", "5 --lowram"),
        ("--log_with=wandb--lowram", "stops", "--log_with=wandb --lowram"),
        ("--no_such--lowram", "stops", "--no_such --lowram"),
        ("--enable_ema--ema_decay=0.99", "stops", "--enable_ema --ema_decay=0.99"),
        ('--comment="mine"--lowram', "a part of the text of --comment", "--comment=mine --lowram"),
        ("--comment mine--lowram", "a part of the text of --comment", "mine --lowram"),
    ],
)
def test_a_missing_blank_between_flags(text: str, effect: str, fix: str) -> None:
    """The script stops at such a word, or takes the second flag for a part of the first one's text."""
    taken = [Argument(f"--{name}", name, "bool") for name in ("lowram", "no_half_vae")]
    taken += [Argument("--seed", "seed", "int"), Argument("--comment", "comment")]
    taken += [Argument("--log_with", "log_with", choices=("wandb",))]
    release = replace(RELEASE, arguments={one.name: one for one in taken})
    found = findings({"additional_parameters": text}, release)
    assert [(one.level, one.rule) for one in found] == [("error", "joined-words")]
    assert found[0].effect.endswith(effect), found[0].effect
    assert found[0].fix == f"write {fix}"


def test_the_warm_up_slider_that_gradio_6_refuses() -> None:
    slider = Field("lr_warmup", "Slider", minimum=0, maximum=100, step=1, default="0")
    schema = replace(SCHEMA, fields={**SCHEMA.fields, "lr_warmup": slider})
    for gradio, expected in ((5, False), (6, True)):
        found = rules({"lr_warmup": 0}, replace(RELEASE, schema=schema, gradio=gradio))
        assert (("error", "release-defect", "lr_warmup") in found) is expected


def test_gradio_is_read_from_the_requirements() -> None:
    assert pinned_gradio(TextSources({"requirements.txt": "x==1\ngradio==3.36.1\n"})) == 3
    assert pinned_gradio(TextSources({"requirements.txt": "gradio[oauth]>=5.34.1\n"})) == 5
    assert pinned_gradio(TextSources({})) is None


def test_a_checkout_without_a_gui_is_unsupported(tmp_path: Path) -> None:
    checkout = guis.write(guis.EMBEDDED, tmp_path)
    checkout = replace(checkout, gui_root=None)
    with pytest.raises(UnsupportedError, match="without a GUI"):
        read_release(checkout, "finetune")


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.lists(st.integers()))
ANY = st.dictionaries(st.sampled_from([*SCHEMA.fields, "use_wandb", "xformers", "?"]), VALUES)


@given(ANY, st.sampled_from([None, 3, 4, 5, 6]), st.booleans())
def test_checking_is_total(values: dict[str, Any], gradio: int | None, patched: bool) -> None:
    migration = Migration(whole={"epoch": 0}, zeroed=frozenset({"learning_rate"}), switches_xformers=True)
    release = replace(RELEASE, gradio=gradio, patched=patched, migration=migration)
    for finding in check(Preset("any", "finetune", values), release):
        assert finding.level in ("error", "warning", "note")


@given(ANY)
def test_fitting_leaves_only_contradictions(values: dict[str, Any]) -> None:
    preset = Preset("any", "finetune", values)
    try:
        fitted = fit(preset, SCHEMA, arguments=RELEASE.flags)
    except UnsupportedError:
        return
    left = {finding.rule for finding in check(Preset("any", "finetune", fitted.values), RELEASE)}
    form = {"unknown-key", "renamed-key", "dead-key", "text-for-switch", "text-for-number", "out-of-range"}
    assert not left & (form | {"not-offered", "null", "wrong-type", "missing-key", "crossed-wire", "secret", "path"})


DATASET = """
class FineTuningDataset(BaseDataset):
    def __init__(self):
        strategy = get_strategy()
        for folder in folders:
            paths.extend(glob("*" + strategy.cache_suffix))

class Other:
    strategy is not None
"""


def test_the_sd_scripts_that_needs_cached_latents_with_metadata() -> None:
    assert wants_cached_latents(TextSources({"library/train_util.py": DATASET}))
    fixed = DATASET.replace("        for folder", "        if strategy is not None:\n          for folder")
    assert not wants_cached_latents(TextSources({"library/finetuning_dataset.py": fixed}))
    assert not wants_cached_latents(TextSources({}))
    broken = replace(RELEASE, wants_cached_latents=True)
    assert ("error", "release-defect", "cache_latents") in rules({}, broken)
    assert rules({"cache_latents": True}, broken) == set()
