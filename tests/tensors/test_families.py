"""What names and shapes of tensors say about the family, of models and of adapters in every spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.tensors import families
from kohya_ext.tensors.families import FLUX, REFINER, SD1, SD2, SD3, SDXL, WAN, possible, refuse_refiner
from tests.tensors.files import write

HF = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
LDM = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
REFINERS = ["file", "bare", "bare hf", "folder", "folder of a U-Net"]


def refiner(place: Path, form: str, width: int = 1280) -> Path:
    """A U-Net that reads text of `width`, in a file or a folder; without a sign of the refiner in its names."""
    to_k, label = (LDM, "label_emb.0.0") if form in ("file", "bare") else (HF, "add_embedding.linear_1")
    start = "model.diffusion_model." if form == "file" else ""
    shapes = {f"{start}{label}.weight": (2, 2), f"{start}{to_k}.weight": (2, width)}
    if not form.startswith("folder"):
        write(place.with_suffix(".safetensors"), shapes)
        return place.with_suffix(".safetensors")
    folder = place / "unet" if form == "folder" else place
    folder.mkdir(parents=True)
    write(folder / "diffusion_pytorch_model.safetensors", shapes)
    return place


@pytest.mark.parametrize(
    ("key", "width", "names"),
    [
        (f"unet.{HF}.lora_A.weight", 768, {SD1}), (f"unet.{HF}.lora.down.weight", 1024, {SD2}),
        (f"lora_unet_{HF.replace('.', '_')}.lora_down.weight", 2048, {SDXL}),
        (f"lora_unet_{LDM.replace('.', '_')}.lora_down.weight", 1280, {REFINER}),
        (f"lora_unet_{LDM.replace('.', '_')}.hada_w1_b", 1280, {REFINER}),
        (f"base_model.model.{HF}.lora_A.default.weight", 2048, {SDXL}), (f"{LDM}.weight", 768, {SD1}),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", 8, None),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", 8, {WAN}), ("joint_blocks.1.a.weight", 8, {SD3}),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 768, set()), ("a.weight", 768, set()),
    ],
)  # fmt: skip
def test_possible(key: str, width: int, names: set[str] | None) -> None:
    found = possible({key: (4, width), "b": (4,)})
    assert found == names if names is not None else (FLUX in found and SD1 not in found)


def test_up_factors_tell_no_width() -> None:
    assert len(possible({f"unet.{HF}.lora_B.weight": (640, 768)})) > 1


def test_names_of_two_families_tell_nothing() -> None:
    assert possible({f"{LDM}.weight": (2, 2), "double_blocks.0.img_attn.qkv.weight": (2, 2)}) == frozenset()
    both = {"distilled_guidance_layer.a": (2,), "joint_blocks.0.a": (2,)}
    assert possible(both) == frozenset() and [name for name, _ in families.named(both)] == [families.CHROMA, SD3]


@pytest.mark.parametrize("form", REFINERS)
def test_the_refiner_in_every_form(tmp_path: Path, form: str) -> None:
    with pytest.raises(UsageError, match="refiner"):
        refuse_refiner(refiner(tmp_path / "a", form))
    refuse_refiner(refiner(tmp_path / "b", form, 2048))


def test_what_cannot_be_read_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    for path in (tmp_path / "a.safetensors", tmp_path, tmp_path / "gone", Path("some/model")):
        refuse_refiner(path)
