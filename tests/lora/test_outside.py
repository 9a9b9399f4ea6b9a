"""What share of a fine-tune is in the LoRA, against sums of squares in float64 over every tensor of both files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kohya_ext.cli.main import main
from kohya_ext.lora import extract, outside, rest
from kohya_ext.lora.extract import Extraction, ExtractSettings
from tests.lora import models

U = "model.diffusion_model."
SMALL: dict[str, tuple[int, ...]] = {
    f"{U}time_embed.0.weight": (16, 8), f"{U}time_embed.0.bias": (16,), f"{U}out.0.weight": (32,),
    f"{U}out.2.weight": (4, 32, 3, 3), f"{U}out.2.bias": (4,), f"{U}input_blocks.4.0.in_layers.2.bias": (32,),
    "conditioner.embedders.1.model.positional_embedding": (9, 24), "conditioner.embedders.1.model.logit_scale": (),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (24,),
    "first_stage_model.decoder.mid.attn_1.q.bias": (8,), "first_stage_model.decoder.norm_out.weight": (8,),
}  # fmt: skip


def all_changed(weights: Mapping[str, Tensor], seed: int, size: float = 0.05) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: value + size * torch.randn(value.shape, generator=generator) for key, value in weights.items()}


def run(base: Path, tuned: Path, out: Path, **settings: object) -> Extraction:
    chosen = ExtractSettings(**settings)  # type: ignore[arg-type]
    return extract.run(extract.plan(base, tuned, chosen), out, chosen)


def slow(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, float]:
    """Squared norm of each tensor's change."""
    return {key: float((tuned[key].double() - base[key].double()).square().sum()) for key in base}


def kind(key: str) -> str:
    """What a person would call a tensor of these models; "" for those of attention blocks and text layers."""
    if key.startswith("first_stage_model."):
        return rest.VAE
    if key.endswith(("bias", "in_proj_bias")):
        return rest.BIASES
    if "embed_" in key or "label_emb" in key or "time_embed" in key:
        return rest.CONDITIONS
    if "token_embedding" in key or "positional_embedding" in key:
        return rest.TOKENS
    if any(part in key for part in ("in_layers.2", "emb_layers", "out_layers.3", "skip_", ".op.", "2.2.conv")):
        return outside.RESIDUAL
    if "norm" in key or ".in_layers.0" in key or key.endswith("out.0.weight"):
        return "" if "attn" in key else rest.NORMS
    if "input_blocks.0.0" in key or "out.2" in key:
        return rest.ENDS
    return rest.OTHER if key.endswith(("text_projection", "logit_scale")) else ""


@pytest.fixture(params=[0, 1])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    weights = models.random_weights({**models.sdxl(), **SMALL}, request.param)
    tuned = all_changed(weights, request.param + 10)
    return models.save(weights, tmp_path / "base.safetensors"), models.save(tuned, tmp_path / "tuned.safetensors")


@pytest.mark.parametrize("conv", [(), (3,)])
@pytest.mark.parametrize("text_encoders", ["auto", "none"])
def test_kinds_and_sums(files: tuple[Path, Path], tmp_path: Path, conv: tuple[int, ...], text_encoders: str) -> None:
    out = tmp_path / "o.safetensors"
    done = run(*files, out, ranks=(5,), conv_ranks=conv, text_encoders=text_encoders, dtype=torch.float32)
    squares = slow(models.read(files[0]), models.read(files[1]))
    expected: dict[str, list[float]] = {}
    for key, square in squares.items():
        name = kind(key)
        if not name and key.startswith("conditioner.") and text_encoders == "none":
            name = "text encoder 1 (CLIP-L)" if ".0." in key[:24] else "text encoder 2 (OpenCLIP bigG)"
        if name and not (name == outside.RESIDUAL and conv):
            expected.setdefault(name, []).append(square)
    found = {part.kind: part for part in done.change.outside}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].energy == pytest.approx(sum(values), rel=1e-6), name
    assert done.change.total == pytest.approx(sum(squares.values()), rel=1e-6)
    assert done.change.uncompared == 0
    flags = {name: part.flag for name, part in found.items() if part.flag}
    wanted = {} if conv else {outside.RESIDUAL: "--conv-rank N"}
    if text_encoders == "none":
        wanted |= {name: "--text-encoders all" for name in found if name.startswith("text encoder")}
    assert flags == wanted
    assert [part.energy for part in done.change.outside] == sorted((p.energy for p in found.values()), reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("clamp", [None, 0.9])
def test_the_share_is_what_the_merged_model_reproduces(
    files: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype, clamp: float | None
) -> None:
    """1 - |tuned - merged|^2 / |tuned - base|^2 over the whole model, merged from what is in the file."""
    done = run(*files, tmp_path / "o.safetensors", ranks=(6, 3), method="exact", dtype=dtype, clamp=clamp)
    base, tuned = models.read(files[0]), models.read(files[1])
    total = sum(slow(base, tuned).values())
    for written in done.files:
        lora = models.read(written.path)
        missing = total
        for key in base:
            for name, change in modules(key, tuned[key].double() - base[key].double()):
                if name in models.names(lora):
                    left = change - models.product(lora, name)
                    missing += float(left.square().sum()) - float(change.square().sum())
        assert done.change.kept(written) == pytest.approx(1 - missing / total, rel=1e-3 if clamp else 1e-4)
        parts = sum(part.energy for part in done.change.outside) / total
        assert done.change.kept(written) + done.change.lost(written) + parts == pytest.approx(1, rel=1e-9)


def modules(key: str, change: Tensor) -> list[tuple[str, Tensor]]:
    """The names of the LoRA modules of a tensor, and the change of each as a matrix."""
    if change.ndim < 2:
        return []
    if key.startswith(U):
        name = key.removeprefix(U).removesuffix(".weight").replace(".", "_")
        return [(f"lora_unet_{name}", change.flatten(1))]
    first, second = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.transformer.resblocks."
    if key.startswith(first):
        return [(f"lora_te1_{key.removeprefix(first).removesuffix('.weight')}".replace(".", "_"), change)]
    if not key.startswith(second):
        return []
    layer, _, rest_of_key = key.removeprefix(second).partition(".")
    start = f"lora_te2_text_model_encoder_layers_{layer}_"
    if rest_of_key == "attn.in_proj_weight":
        return [(f"{start}self_attn_{n}_proj", part) for n, part in zip("qkv", change.chunk(3), strict=True)]
    names = {"attn.out_proj": "self_attn_out_proj", "mlp.c_fc": "mlp_fc1", "mlp.c_proj": "mlp_fc2"}
    module = names.get(rest_of_key.removesuffix(".weight"))
    return [(start + module, change)] if module else []


def test_what_was_only_stored_in_another_type_has_not_changed(tmp_path: Path) -> None:
    weights = {key: value.half().float() for key, value in models.random_weights({**models.sdxl(), **SMALL}).items()}
    tuned = {**weights, **models.changed({key: value for key, value in weights.items() if "attn2" in key})}
    base = models.save(weights, tmp_path / "b.safetensors", torch.float16)
    done = run(base, models.save(tuned, tmp_path / "t.safetensors"), tmp_path / "o.safetensors")
    assert done.change.outside == () and done.change.uncompared == 0
    assert done.change.kept(done.files[0]) == pytest.approx(1, abs=1e-5)


def test_what_only_one_model_has_or_is_no_number_is_counted(tmp_path: Path) -> None:
    weights = models.random_weights({**models.sdxl(), **SMALL})
    tuned = all_changed(weights, 3)
    del tuned[f"{U}out.2.weight"]
    tuned["first_stage_model.decoder.norm_out.weight"].fill_(float("nan"))
    ignored = {
        "model_ema.decay": torch.ones(()), "betas": torch.ones(5), "v_pred": torch.ones(0),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(9),
    }  # fmt: skip
    base = models.save(weights, tmp_path / "b.safetensors")
    done = run(base, save_raw({**tuned, **ignored}, tmp_path / "t.safetensors"), tmp_path / "o.safetensors")
    assert done.change.uncompared == 3  # the layer that is gone, the NaN, position ids that only one has
    assert all(part.energy < float("inf") for part in done.change.outside)


def save_raw(weights: dict[str, Tensor], path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(weights, str(path))
    return path


def test_a_folder_is_compared_with_its_vae(tmp_path: Path) -> None:
    shapes = {**models.sdxl_folder(), "vae": {"decoder.conv_in.weight": (8, 4, 3, 3), "decoder.conv_in.bias": (8,)}}
    folder = {part: models.random_weights(shapes[part], seed) for seed, part in enumerate(shapes)}
    tuned = {part: all_changed(weights, 7) for part, weights in folder.items()}
    both = models.save_folder(folder, tmp_path / "base"), models.save_folder(tuned, tmp_path / "tuned")
    done = run(*both, tmp_path / "o.safetensors", ranks=(4,), conv_ranks=(4,))
    total = sum(sum(slow(folder[part], tuned[part]).values()) for part in folder)
    assert done.change.total == pytest.approx(total, rel=1e-6) and done.change.uncompared == 0
    found = {part.kind: part.energy for part in done.change.outside}
    assert found[rest.VAE] == pytest.approx(sum(slow(folder["vae"], tuned["vae"]).values()), rel=1e-6)
    (tmp_path / "tuned" / "vae" / "model.safetensors").write_bytes(b"damaged")
    again = run(*both, tmp_path / "again.safetensors", ranks=(4,), conv_ranks=(4,))
    assert again.change.uncompared == 2 and rest.VAE not in {part.kind for part in again.change.outside}


def test_flux_and_sd1(tmp_path: Path) -> None:
    for name, shapes in (("flux", models.flux()), ("sd1", models.sd1())):
        weights = models.random_weights(shapes)
        tuned = all_changed(weights, 2)
        base = models.save(weights, tmp_path / f"{name}-b.safetensors")
        done = run(base, models.save(tuned, tmp_path / f"{name}-t.safetensors"), tmp_path / f"{name}.safetensors")
        assert done.change.total == pytest.approx(sum(slow(weights, tuned).values()), rel=1e-6)
        assert rest.OTHER not in {part.kind for part in done.change.outside}


def test_the_report(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lora", "extract", "--base", str(files[0]), "--tuned", str(files[1]), "--rank", "4"]
    assert main([*arguments, "--out", str(tmp_path / "o.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "of the whole change is in the file" in printed and "(squared norms)" in printed
    assert f"{outside.RESIDUAL}: --conv-rank N" in printed and "biases: a LoRA has no place for them" in printed
    assert main([*arguments, "--out", str(tmp_path / "j.safetensors"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    shares = document["files"][0]["share"] + document["files"][0]["lost"]
    assert shares + sum(part["share"] for part in document["change"]["outside"]) == pytest.approx(1)
    assert document["change"]["not_compared"] == 0
    assert {"kind", "share", "tensors", "flag"} == document["change"]["outside"][0].keys()
