"""Models as users have them: quantised, of other families, without prefixes, in diffusers' names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.lora import extract
from kohya_ext.lora.checkpoint import open_checkpoint, same_when_stored
from kohya_ext.lora.extract import Extraction, ExtractSettings
from kohya_ext.lora.layout import Architecture
from tests.lora import models
from tests.tensors.test_families import REFINERS, refiner

NF4 = torch.tensor(
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
     0.7230, 1.0]
)  # fmt: skip
MODULE, KEY = "lora_unet_double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv.weight"


def run(base: Path, tuned: Path, out: Path, **settings: object) -> Extraction:
    chosen = ExtractSettings(**settings)  # type: ignore[arg-type]
    return extract.run(extract.plan(base, tuned, chosen), out, chosen)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return models.random_weights(models.flux())


def scaled_fp8(weights: dict[str, Tensor], name: str, by: str = "tensor") -> dict[str, Tensor]:
    """As ComfyUI and others write it: codes, and the scale next to them."""
    found: dict[str, Tensor] = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for key, value in weights.items():
        if value.ndim < 2:
            found[key] = value
            continue
        scale = value.abs().amax(1, keepdim=True) / 448 if by == "row" else value.abs().max() / 448
        if by == "block":
            scale = (value.abs().view(len(value), -1, 8).amax(2) / 448).unsqueeze(2)
            codes = (value.view(len(value), -1, 8) / scale).view(value.shape)
        else:
            codes = value / scale
        found[key] = codes.to(torch.float8_e4m3fn)
        found[f"{key.removesuffix('weight')}{name}"] = scale
        found[f"{key.removesuffix('weight')}input_scale"] = torch.tensor(1.0)
    return found


def nf4(value: Tensor, key: str, blocksize: int = 64) -> dict[str, Tensor]:
    blocks = value.reshape(-1, blocksize)
    absmax = blocks.abs().amax(1)
    codes = ((blocks / absmax[:, None])[..., None] - NF4).abs().argmin(-1).flatten().to(torch.uint8)
    state = json.dumps({"quant_type": "nf4", "blocksize": blocksize, "dtype": "float32", "shape": list(value.shape)})
    return {
        key: ((codes[::2] << 4) | codes[1::2]).unsqueeze(1),
        f"{key}.absmax": absmax, f"{key}.quant_map": NF4.clone(),
        f"{key}.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }  # fmt: skip


def int8(weights: dict[str, Tensor], scale: str | None) -> dict[str, Tensor]:
    found = {}
    for key, value in weights.items():
        found[key] = value
        if value.ndim > 1:
            steps = value.abs().amax(1, keepdim=True) / 127
            found[key] = (value / steps).round().to(torch.int8)
            if scale:
                found[key.removesuffix("weight") + scale] = (steps * (127 if scale == "SCB" else 1)).flatten()
    return found


@pytest.mark.parametrize(
    "form", ["scale_weight", "weight_scale", "scale_weight row", "scale_weight block", "SCB", "int8", "nf4"]
)
def test_quantised_weights_are_read_as_numbers(weights: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    """The change is that of the unquantised model, but for rounding."""
    tuned = models.changed(weights, size=0.1)
    name, _, by = form.partition(" ")
    if form == "nf4":
        stored: dict[str, Tensor] = {}
        for key, value in tuned.items():
            stored |= nf4(value, key) if value.ndim > 1 else {key: value}
    else:
        stored = (
            int8(tuned, "SCB" if form == "SCB" else "weight_scale")
            if form in ("SCB", "int8")
            else scaled_fp8(tuned, name, by)
        )
    save_file({key: value.contiguous() for key, value in stored.items()}, str(tmp_path / "t.safetensors"))
    base = models.save(weights, tmp_path / "b.safetensors")
    checkpoint = open_checkpoint(tmp_path / "t.safetensors")
    assert "4 weights in" in checkpoint.quantised
    run(base, tmp_path / "t.safetensors", tmp_path / "o.safetensors", ranks=(8,), method="exact", dtype=torch.float32)
    exact = tuned[KEY] - weights[KEY]
    found = models.product(models.read(tmp_path / "o.safetensors"), MODULE)
    rounding = {"nf4": 0.15, "SCB": 0.01, "int8": 0.01}.get(form, 0.05) * float(tuned[KEY].norm())
    least = float((models.truncated(exact, 8) - exact).norm())
    assert float((found - exact).norm()) < least + rounding


@pytest.mark.parametrize("form", ["scale_weight", "weight_scale", "int8"])
def test_a_model_that_was_only_quantised_has_not_changed(weights: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    stored = int8(weights, "weight_scale") if form == "int8" else scaled_fp8(weights, form)
    save_file(stored, str(tmp_path / "t.safetensors"))
    base = models.save(weights, tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="nothing to extract"):
        run(base, tmp_path / "t.safetensors", tmp_path / "o.safetensors", ranks=(4,))


def test_unknown_quantisations_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(int8(weights, None), str(tmp_path / "t.safetensors"))
    with pytest.raises(UnsupportedError, match="is int8 without a scale"):
        open_checkpoint(tmp_path / "t.safetensors")
    save_file(
        {**weights, "double_blocks.0.x.qweight": torch.zeros(4, dtype=torch.int32)}, str(tmp_path / "q.safetensors")
    )
    with pytest.raises(UnsupportedError, match="GPTQ"):
        open_checkpoint(tmp_path / "q.safetensors")


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("double_blocks.0.img_attn_qkv.weight", "HunyuanVideo"), ("distilled_guidance_layer.in_proj.weight", "Chroma"),
        ("double_stream_modulation_img.lin.weight", "FLUX.2"), ("byt5_in.fc1.weight", "HunyuanImage"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "SD 3"), ("cap_embedder.0.weight", "Lumina"),
    ],
)  # fmt: skip
def test_other_families_are_named(weights: dict[str, Tensor], tmp_path: Path, key: str, family: str) -> None:
    """Also where the rest of the names are those of FLUX.1."""
    models.save({**weights, key: torch.zeros(4, 4)}, tmp_path / "m.safetensors")
    with pytest.raises(UnsupportedError, match=f"is a {family}"):
        open_checkpoint(tmp_path / "m.safetensors")


def flux_pair() -> dict[str, dict[str, Tensor]]:
    """A base (b) and a tuned (t) transformer, in the original names and (`b hf`, `t hf`) in diffusers'."""
    width, mod = models.WIDTH, "double_blocks.0.img_mod.lin.weight"
    shapes = {
        "double_blocks.0.img_attn.qkv.weight": (3 * width, width), mod: (6 * width, width),
        "single_blocks.0.linear1.weight": (7 * width, width),
    }  # fmt: skip
    weights = models.random_weights(shapes)
    pairs: dict[str, dict[str, Tensor]] = {"b": weights, "t": models.changed(weights)}
    for name in "bt":
        model = pairs[name]
        qkv, linear = model["double_blocks.0.img_attn.qkv.weight"], model["single_blocks.0.linear1.weight"]
        renamed = {"transformer_blocks.0.norm1.linear.weight": model[mod]}
        renamed |= {
            f"transformer_blocks.0.attn.to_{n}.weight": part for n, part in zip("qkv", qkv.chunk(3), strict=True)
        }
        names = [*(f"attn.to_{n}" for n in "qkv"), "proj_mlp"]
        parts = linear.split([width, width, width, 4 * width])
        renamed |= {f"single_transformer_blocks.0.{n}.weight": p for n, p in zip(names, parts, strict=True)}
        pairs[f"{name} hf"] = renamed
    return pairs


def test_diffusers_names_of_flux_give_the_same(tmp_path: Path) -> None:
    pairs = {name: models.save(model, tmp_path / f"{name}.safetensors") for name, model in flux_pair().items()}
    run(pairs["b"], pairs["t"], tmp_path / "1.safetensors", ranks=(4,), method="exact")
    run(pairs["b hf"], pairs["t hf"], tmp_path / "2.safetensors", ranks=(4,), method="exact")
    assert_same_lora(tmp_path / "1.safetensors", tmp_path / "2.safetensors")


def assert_same_lora(first: Path, second: Path) -> None:
    one, two = models.read(first), models.read(second)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def sharded(weights: Mapping[str, Tensor], folder: Path, stem: str, count: int) -> Path:
    """Tensor after tensor into the next shard, so that the parts of one module are in different files."""
    names = [f"{stem}-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    for n, name in enumerate(names):
        models.save(dict(list(weights.items())[n::count]), folder / name)
    index = {"metadata": {}, "weight_map": {key: names[n % count] for n, key in enumerate(weights)}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("inside", "stem"), [("transformer", "diffusion_pytorch_model"), ("", "diffusion_pytorch_model"), ("", "model")]
)
def test_shards_give_what_single_files_give(tmp_path: Path, inside: str, stem: str) -> None:
    """A whole diffusers folder, its transformer alone, and transformers' name for the index; against either naming."""
    pairs = flux_pair()
    files = {name: models.save(model, tmp_path / f"{name}.safetensors") for name, model in pairs.items()}
    for name in "bt":
        sharded(pairs[f"{name} hf"], tmp_path / name / inside, stem, 3)
    run(files["b"], files["t"], tmp_path / "1.safetensors", ranks=(4,), method="exact")
    for base, tuned in (
        (tmp_path / "b", tmp_path / "t"), (tmp_path / "b", files["t"]), (files["b hf"], tmp_path / "t")
    ):  # fmt: skip
        done = run(base, tuned, tmp_path / "2.safetensors", ranks=(4,), method="exact")
        assert_same_lora(tmp_path / "1.safetensors", tmp_path / "2.safetensors")
        assert done.change.uncompared == 0
    hashes = json.loads(done.files[0].metadata["kohya_ext_lora_tuned_sha256"])
    assert len(hashes) == 3 and all(name.startswith(inside) for name in hashes)


T5: dict[str, tuple[int, ...]] = {
    "encoder.block.0.layer.0.SelfAttention.q.weight": (24, 24),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (48, 24),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 4),
    "shared.weight": (64, 24),
}


def test_text_encoders_next_to_a_transformer(tmp_path: Path) -> None:
    """CLIP-L and T5 under the names that sd-scripts gives them; an encoder that one model lacks is dropped."""
    pairs = flux_pair()
    encoders = {"text_encoder": models.clip("", 24), "text_encoder_2": T5}
    for name in "bt":
        sharded(pairs[f"{name} hf"], tmp_path / name / "transformer", "diffusion_pytorch_model", 2)
    for part, shapes in encoders.items():
        weights = models.random_weights(shapes)
        models.save(weights, tmp_path / "b" / part / "model.safetensors")
        sharded(models.changed(weights), tmp_path / "t" / part, "model", 2)
    done = run(tmp_path / "b", tmp_path / "t", tmp_path / "1.safetensors", ranks=(4,))
    found = models.names(models.read(tmp_path / "1.safetensors"))
    t5 = {"SelfAttention_q": 0, "DenseReluDense_wi_0": 1}
    assert {name for name in found if "te3" in name} == {
        f"lora_te3_encoder_block_0_layer_{layer}_{name}" for name, layer in t5.items()
    }
    assert len({name for name in found if name.startswith("lora_te1_text_model_encoder_layers_0_")}) == 6
    assert done.change.uncompared == 0
    decisions = extract.plan(tmp_path / "b", tmp_path / "t", ExtractSettings(ranks=(4,))).decisions
    assert {one.group: bool(one.unseen) for one in decisions} == {"te1": False, "te3": True}
    single = models.save(pairs["b"], tmp_path / "single.safetensors")
    run(single, tmp_path / "t", tmp_path / "2.safetensors", ranks=(4,))
    assert not any("_te" in name for name in models.names(models.read(tmp_path / "2.safetensors")))


def test_a_sharded_unet_gives_what_a_single_file_gives(tmp_path: Path) -> None:
    folder = {part: models.random_weights(shapes) for part, shapes in models.sdxl_folder().items()}
    tuned = {part: models.changed(weights) for part, weights in folder.items()}
    base = models.save_folder(folder, tmp_path / "b")
    run(base, models.save_folder(tuned, tmp_path / "t"), tmp_path / "1.safetensors", ranks=(4,), method="exact")
    sharded(tuned["unet"], tmp_path / "s" / "unet", "diffusion_pytorch_model", 3)
    for part in ("text_encoder", "text_encoder_2"):
        sharded(tuned[part], tmp_path / "s" / part, "model", 2)
    run(base, tmp_path / "s", tmp_path / "2.safetensors", ranks=(4,), method="exact")
    assert_same_lora(tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    bare = open_checkpoint(tmp_path / "s" / "unet")
    assert bare.architecture is Architecture.SDXL and len(bare.weights) == 46


def test_a_scale_in_another_shard_than_its_weight_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """It would be read as plain numbers: fp8 codes without their scale."""
    scale = KEY.replace(".weight", ".scale_weight")
    first = {KEY: weights[KEY], **{key: value for key, value in weights.items() if key != KEY}}
    folder = sharded({**first, scale: torch.ones(1)}, tmp_path / "m", "model", len(first) + 1)
    with pytest.raises(UsageError, match=r"scale_weight is in another shard than its weight"):
        open_checkpoint(folder)
    assert open_checkpoint(sharded(first, tmp_path / "plain", "model", 3)).architecture is Architecture.FLUX


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    shards = sharded(flux_pair()["b hf"], tmp_path / "f" / "transformer", "diffusion_pytorch_model", 3)
    (shards / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UsageError, match=r"00002-of-00003\.safetensors does not exist"):
        open_checkpoint(tmp_path / "f")
    (shards / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(UsageError, match="outside of its folder"):
        open_checkpoint(tmp_path / "f")
    for content in ('{"weight_map": {}}', '{"weight_map": {"a": 1, "b": "c"}}', "[]", "{"):
        (shards / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
        with pytest.raises(UsageError, match="lists no shards"):
            open_checkpoint(tmp_path / "f")
    with pytest.raises(UsageError, match="not a diffusers model"):
        open_checkpoint(tmp_path)
    models.save({"joint_blocks.0.x.weight": torch.zeros(2, 2)}, tmp_path / "sd3" / "transformer" / "model.safetensors")
    with pytest.raises(UnsupportedError, match="is a SD 3 model"):
        open_checkpoint(tmp_path / "sd3")


def test_a_unet_alone_without_prefix(base_weights: dict[str, Tensor], tmp_path: Path) -> None:
    prefix = "model.diffusion_model."
    unet = {key.removeprefix(prefix): value for key, value in base_weights.items() if key.startswith(prefix)}
    base = models.save(unet, tmp_path / "b.safetensors")
    whole = models.save(models.changed(base_weights), tmp_path / "t.safetensors")
    assert open_checkpoint(base).architecture is Architecture.SDXL
    run(base, whole, tmp_path / "o.safetensors", ranks=(4,))
    assert len(models.names(models.read(tmp_path / "o.safetensors"))) == 36


def test_what_only_went_through_other_types_has_not_changed() -> None:
    value = torch.randn(300, 40) * torch.logspace(-8, 0, 40)
    brain, half = torch.bfloat16, torch.float16
    for base in (value, value.to(half), value.to(brain)):
        for tuned in (base.to(brain).to(half), base.to(half).to(brain), base.to(brain).float(), base.to(half).float()):
            assert same_when_stored(base, tuned), (base.dtype, tuned.dtype)
    assert not same_when_stored(value, value * 1.001)
    assert not same_when_stored(value.to(half), (value * 1.01).to(half))


def test_v_prediction_reaches_the_metadata(base_weights: dict[str, Tensor], tmp_path: Path) -> None:
    tuned = {**models.changed(base_weights), "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    base = models.save(base_weights, tmp_path / "b.safetensors")
    done = run(base, models.save(tuned, tmp_path / "t.safetensors"), tmp_path / "o.safetensors", ranks=(4,))
    metadata = done.files[0].metadata
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["ss_v_parameterization"] == metadata["ss_zero_terminal_snr"] == "True"


def test_alpha_is_what_was_asked_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name, alpha in (("1", None), ("2", 1.0)):
        run(*pair, tmp_path / f"{name}.safetensors", ranks=(6,), alpha=alpha, method="exact", dtype=torch.float32)
    one, two = models.read(tmp_path / "1.safetensors"), models.read(tmp_path / "2.safetensors")
    for name in models.names(one):
        assert float(two[f"{name}.alpha"]) == 1.0
        exact = models.product(one, name)
        assert torch.allclose(models.product(two, name), exact, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_a_model_quantised_in_bfloat16_has_not_changed(tmp_path: Path, seed: int) -> None:
    """Most converters divide by the scale in the type of the model, which rounds once more."""
    plain = {key: value.bfloat16() for key, value in models.random_weights(models.flux(), seed).items()}
    for place, at in (("base", plain), ("tuned", scaled_fp8(plain, "weight_scale"))):
        save_file({key: value.contiguous() for key, value in at.items()}, str(tmp_path / f"{place}.safetensors"))
    with pytest.raises(UsageError, match="do not differ"):
        run(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "out.safetensors", ranks=(4,))


@pytest.mark.parametrize("form", REFINERS)
def test_the_refiner_is_not_sdxl(tmp_path: Path, form: str) -> None:
    with pytest.raises(UnsupportedError, match="SDXL refiner"):
        open_checkpoint(refiner(tmp_path / "r", form))
