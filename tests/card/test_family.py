"""The base model is the one that a file states; names of tensors make nothing up."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.card import family as families
from kohya_ext.card.model import CHECKPOINT, EMBEDDING, LORA, read
from kohya_ext.card.page import Author, page
from tests.tensors.files import write

V1 = "sdxl_base_v1-0"
SDXL, FLUX = "stabilityai/stable-diffusion-xl-base-1.0", "black-forest-labs/FLUX.1-dev"
SIGNS = [
    "double_blocks.0.img_attn_qkv.weight", "double_blocks.0.img_attn.qkv.weight", "joint_blocks.0.x_block.a.weight",
    "conditioner.embedders.1.model.a", "cond_stage_model.transformer.a", "cond_stage_model.model.a",
    "lora_te2_a.lora_down.weight", "lora_unet_double_blocks_0_a.lora_down.weight",
]  # fmt: skip


def shown(path: Path, keys: list[str], metadata: dict[str, str], site: str = "huggingface", **preset: str) -> str:
    write(path / "a.safetensors", dict.fromkeys(keys, (2, 2)), metadata)
    return page(read(path / "a.safetensors"), Author(), site, preset=preset).text


@pytest.mark.parametrize("key", SIGNS)
def test_a_file_without_a_statement_has_no_family(tmp_path: Path, key: str) -> None:
    text = shown(tmp_path, [key], {})
    assert "base_model" not in text and "Base model" not in text and "Size" not in text
    assert "| Kind | LoRA, fp16" in text or "| Kind | checkpoint, fp16" in text
    assert 'license: "other"' in text


@pytest.mark.parametrize(
    ("metadata", "name", "base"),
    [
        ({"ss_base_model_version": V1}, "SDXL 1.0", ""),
        ({"ss_base_model_version": V1, "ss_sd_model_name": "sd_xl_base_1.0.safetensors"}, "SDXL 1.0", SDXL),
        ({"ss_base_model_version": V1, "ss_sd_model_name": SDXL}, "SDXL 1.0", SDXL),
        ({"ss_base_model_version": V1, "ss_sd_model_name": "pony_v6.safetensors"}, "SDXL", ""),
        ({"ss_base_model_version": V1, "ss_sd_model_name": "some/model-xl"}, "SDXL", "some/model-xl"),
        ({"ss_base_model_version": V1, "ss_sd_model_name": "None"}, "SDXL 1.0", ""),
        ({"ss_base_model_version": "sdxl_1.0"}, "SDXL 1.0", ""),
        ({"ss_base_model_version": "sd_1.5"}, "SD 1.5", ""),
        ({"ss_base_model_version": "sdxl_"}, "SDXL", ""),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "SDXL 1.0", ""),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-edit"}, "SDXL", ""),
        ({"ss_base_model_version": "sd_v1", "ss_sd_model_name": "models/v1-5-pruned-emaonly.safetensors"}, "SD 1",
         "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ({"ss_base_model_version": "sd_v2"}, "SD 2", ""),
        ({"ss_base_model_version": "flux1"}, "FLUX.1", ""),
        ({"ss_base_model_version": "flux1", "ss_sd_model_name": "flux1-dev.safetensors"}, "FLUX.1", FLUX),
        ({"modelspec.architecture": "flux-1-dev/lora", "ss_base_model_version": "flux1"}, "FLUX.1 dev", ""),
        ({"modelspec.architecture": "hunyuan-image-2.1/lora"}, "hunyuan-image-2.1", ""),
        ({"ss_base_model_version": "flux_2_klein_9b"}, "flux_2_klein_9b", ""),
        ({"modelspec.architecture": "stable-diffusion-3-5-large"}, "SD 3.5 large", ""),
        ({}, "", ""),
    ],
)  # fmt: skip
def test_what_is_stated(metadata: dict[str, str], name: str, base: str) -> None:
    assert (families.family(metadata).name, families.base(metadata).base) == (name, base)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("flux1-dev.sft", FLUX), ("flux1-dev-fp8.safetensors", FLUX), ("flux1-dev_fp8_scaled.safetensors", FLUX),
        ("flux1-dev-Q4_K_S.gguf", FLUX), ("flux1-dev-bnb-nf4-v2.safetensors", FLUX), ("flux1-dev", FLUX),
        ("flux1-dev-kontext_fp8_scaled.safetensors", ""), ("flux1-dev-de-distill.safetensors", ""),
        ("flux1-dev2pro.safetensors", ""), ("flux1-devil.safetensors", ""),
        ("sd_xl_base_1.0_0.9vae.safetensors", SDXL), ("sd_xl_base_1.0.fp16.safetensors", SDXL),
        ("sd_xl_base_1.0_inpainting_0.1.safetensors", ""), ("sd_xl_base_1.0-mine.safetensors", ""),
        ("sd3.5_large_fp8_scaled.safetensors", "stabilityai/stable-diffusion-3.5-large"),
        ("sd3.5_large_turbo.safetensors", ""),
        ("sd3_medium_incl_clips_t5xxlfp8.safetensors", "stabilityai/stable-diffusion-3-medium"),
        ("v1-5-pruned-emaonly-fp16.safetensors", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("v1-5-pruned-inpainting.ckpt", ""),
    ],
)  # fmt: skip
def test_a_file_made_from_a_known_model_is_another_one(name: str, base: str) -> None:
    assert families.base({"ss_sd_model_name": name}).base == base


def test_front_matter_and_table_name_the_same_model(tmp_path: Path) -> None:
    told = {"ss_base_model_version": V1, "ss_sd_model_name": "/home/me/pony_v6.safetensors"}
    text = shown(tmp_path, ["lora_te2_a.lora_down.weight"], told)
    assert (
        "| Base model | pony\\_v6.safetensors |" in text
        and "base_model" not in text.split("# a")[0]
        and 'license: "other"' in text
    )
    text = shown(tmp_path, ["lora_te2_a.lora_down.weight"], {"ss_sd_model_name": SDXL})
    assert f"base_model: {SDXL}" in text and "| Base model | SDXL 1.0 |" in text and "license: openrail++" in text


def test_a_preset_says_what_the_file_does_not(tmp_path: Path) -> None:
    given = {"pretrained_model_name_or_path": "D:\\models\\mine.safetensors"}
    text = shown(tmp_path, ["conditioner.embedders.1.model.a"], {}, "civitai", **given)
    assert "| Base model | mine.safetensors |" in text
    text = shown(tmp_path, ["lora_te2_a.lora_down.weight"], {"ss_sd_model_name": "its.safetensors"}, "civitai", **given)
    assert "| Base model | its.safetensors |" in text


@pytest.mark.parametrize(
    ("shapes", "kind", "told"),
    [
        ({"<cat>": (768,)}, EMBEDDING, "embedding"), ({"emb_params": (4, 768)}, EMBEDDING, "embedding"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, EMBEDDING, "embedding"),
        ({"base_model.model.a.c3a_kernel": (4, 4)}, LORA, "LoRA"), ({"lllite_unet_a.down.0.b": (4, 4)}, LORA, "LoRA"),
        ({"a.oft_blocks": (4, 4, 4)}, LORA, "LoRA (OFT)"), ({"a.lokr_w1": (4, 4)}, LORA, "LoRA (LoKr)"),
        ({"a.lora_down.weight": (4, 4)}, LORA, "LoRA"), ({"a.on_input": (), "a.weight": (4,)}, LORA, "LoRA (IA3)"),
        ({"encoder.conv_in.weight": (4, 3, 3, 3)}, CHECKPOINT, "checkpoint"),
    ],
)  # fmt: skip
def test_kinds(tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: str, told: str) -> None:
    write(tmp_path / "a.safetensors", shapes)
    found = read(tmp_path / "a.safetensors")
    assert found.kind == kind
    assert f"| Kind | {told}, fp16" in page(found, Author(), "civitai", preset={}).text


def test_what_is_stated_cannot_break_the_table(tmp_path: Path) -> None:
    text = shown(tmp_path, ["a.lora_down.weight"], {"ss_base_model_version": "x | <b>\n# y"})
    assert "for x \\| &lt;b&gt; # y, fp16" in text


FLUX_LORA = ["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "lora_unet_single_blocks_3_linear1.alpha"]
FLUX_SHAPES = dict.fromkeys(FLUX_LORA, (2, 2))
TO_K = "lora_unet_{}_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
BASE = "ss_base_model_version"
XL_FILE = {BASE: V1, "ss_sd_model_name": "sd_xl_base_1.0.safetensors", "modelspec.resolution": "1024x1024"}


@pytest.mark.parametrize(
    ("shapes", "stated", "told"),
    [
        (FLUX_SHAPES, {BASE: "sd_1.5"}, "SD 1.5"), (FLUX_SHAPES, XL_FILE, "SDXL 1.0"),
        ({"diffusion_model.blocks.0.cross_attn.q.lora_A.weight": (2, 2)}, {BASE: "sd_1.5"}, "SD 1.5"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (2, 2)}, {BASE: V1}, "SDXL 1.0"),
        ({"diffusion_model.layers.0.attention.to_q.lora_A.weight": (2, 2)}, {BASE: "sd_v1"}, "SD 1"),
        ({"joint_blocks.0.x_block.attn.qkv.weight": (2, 2)}, {"modelspec.architecture": "flux-1-dev"}, "FLUX.1 dev"),
        ({TO_K.format("down_blocks"): (4, 768)}, {BASE: V1}, "SDXL 1.0"),
        ({TO_K.format("down_blocks"): (4, 2048)}, {"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD 1"),
        ({"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 1280)},
         {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "SDXL 1.0"),
        ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (2, 2)}, {BASE: "wan2.1"}, "wan2.1"),
    ],
)  # fmt: skip
def test_tensors_contradict_a_statement(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], stated: dict[str, str], told: str
) -> None:
    write(tmp_path / "a.safetensors", shapes, stated)
    found = read(tmp_path / "a.safetensors")
    assert (found.family, found.base) == (families.UNKNOWN, families.UNKNOWN) and told in found.contradiction
    text = page(found, Author(), "huggingface", preset={}).text
    assert "file and metadata disagree" in text and " for " not in text.split("| Kind |")[1].split("\n")[0]
    assert "base_model" not in text and "- Size" not in text and text.count("| Base model |") == 1
    assert "stable-diffusion-xl" not in text and ("metadata disagree: metadata states " + told) in text


@pytest.mark.parametrize(
    ("shapes", "stated"),
    [
        ({TO_K.format("down_blocks"): (4, 768)}, "sd_v1"), ({TO_K.format("down_blocks"): (4, 2048)}, V1),
        ({TO_K.format("down_blocks"): (4, 1024)}, "sd_v2"), ({TO_K.format("down_blocks"): (4, 48)}, V1),
        (FLUX_SHAPES, "flux1"), (FLUX_SHAPES, "hunyuan_video"),
        (FLUX_SHAPES, "a_new_one"), ({"lora_te1_text_model_a.lora_down.weight": (2, 2)}, V1),
    ],
)  # fmt: skip
def test_tensors_do_not_contradict_what_can_be(tmp_path: Path, shapes: dict[str, tuple[int, ...]], stated: str) -> None:
    write(tmp_path / "a.safetensors", shapes, {"ss_base_model_version": stated})
    found = read(tmp_path / "a.safetensors")
    assert found.family.name and not found.contradiction


@pytest.mark.parametrize(
    ("stated", "name", "shown_as"),
    [
        (V1, "ponyDiffusionV6XL.safetensors", "SDXL"), (V1, "Illustrious-XL-v0.1.safetensors", "SDXL"),
        (V1, "OnomaAIResearch/Illustrious-xl-early-release-v0", "SDXL"), (V1, SDXL, "SDXL 1.0"),
        (V1, "sd_xl_base_1.0.safetensors", "SDXL 1.0"), ("sd_1.5", "anything-v5.safetensors", "SD 1"),
        ("sd3.5", "", "sd3.5"),
    ],
)  # fmt: skip
def test_a_file_is_for_the_base_model_that_it_names(tmp_path: Path, stated: str, name: str, shown_as: str) -> None:
    text = shown(
        tmp_path, ["lora_unet_a.lora_down.weight"], {"ss_base_model_version": stated, "ss_sd_model_name": name}
    )
    assert f"| Kind | LoRA for {shown_as}, fp16" in text


@pytest.mark.parametrize(
    ("key", "stated", "task"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "hunyuan_video", "text-to-video"),
        ("diffusion_model.blocks.0.cross_attn.q.lora_A.weight", "wan2.1", "text-to-video"),
        ("diffusion_model.blocks.0.cross_attn.q.lora_A.weight", "wan22_14b_i2v", "image-to-video"),
        ("diffusion_model.blocks.0.cross_attn.q.lora_A.weight", "", "text-to-video"),
        ("diffusion_model.blocks.0.cross_attn.q.lora_A.weight", "sd_1.5", "text-to-video"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "ltx2", "text-to-video"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "", ""),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "flux1", "text-to-image"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "a_new_one", ""),
        ("lora_unet_input_blocks_1_1_proj_in.lora_down.weight", "", "text-to-image"),
        ("lora_unet_input_blocks_1_1_proj_in.lora_down.weight", V1, "text-to-image"),
    ],
)  # fmt: skip
def test_task(tmp_path: Path, key: str, stated: str, task: str) -> None:
    text = shown(tmp_path, [key], {"ss_base_model_version": stated} if stated else {})
    tags = [line for line in text.splitlines() if line.startswith("pipeline_tag")]
    assert tags == ([f"pipeline_tag: {task}"] if task else []) and (not task or f"- {task}" in text)
    assert task == "text-to-image" or "text-to-image" not in text
