"""Extraction from whole models: which modules, how well, and what the file says about itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.lora import extract
from kohya_ext.lora.extract import Extraction, ExtractSettings
from kohya_ext.lora.resize import ResizeSettings as ResizeSettings
from kohya_ext.lora.resize import opened
from kohya_ext.lora.resize import run as resize
from tests.lora import models

FLOAT = {"dtype": torch.float32}


def run(base: Path, tuned: Path, out: Path, **settings: object) -> Extraction:
    chosen = ExtractSettings(**settings)  # type: ignore[arg-type]
    return extract.run(extract.plan(base, tuned, chosen), out, chosen)


def difference(base: dict[str, Tensor], tuned: dict[str, Tensor], key: str) -> Tensor:
    return (tuned[key].double() - base[key].double()).flatten(1)


ATTENTION_KEY = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
ATTENTION = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def test_every_module_is_the_truncated_svd_of_its_difference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(*pair, tmp_path / "o.safetensors", ranks=(6,), conv_ranks=(5,), **FLOAT)
    base, tuned, lora = models.read(pair[0]), models.read(pair[1]), models.read(tmp_path / "o.safetensors")
    seen = 0
    for key in base:
        if not key.startswith("model.diffusion_model.") or not key.endswith(".weight") or base[key].ndim < 2:
            continue
        name = "lora_unet_" + key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        if "input_blocks_0_0" in name or "label_emb" in name:
            assert name not in models.names(lora)
            continue
        exact = difference(base, tuned, key)
        best = models.truncated(exact, 5 if base[key].shape[2:] == (3, 3) else 6)
        assert torch.allclose(models.product(lora, name), best, atol=2e-6 * float(exact.norm())), name
        seen += 1
    assert seen == 3 * 12 + 2 * 4 + 2  # three attention blocks, two residual blocks, two samplers


def test_a_fused_query_key_value_matrix_is_three_modules(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(*pair, tmp_path / "o.safetensors", ranks=(4,), **FLOAT)
    base, tuned, lora = models.read(pair[0]), models.read(pair[1]), models.read(tmp_path / "o.safetensors")
    fused = difference(base, tuned, "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight")
    for part, name in zip(fused.chunk(3), "qkv", strict=True):
        module = f"lora_te2_text_model_encoder_layers_1_self_attn_{name}_proj"
        assert torch.allclose(models.product(lora, module), models.truncated(part, 4), atol=2e-6 * float(part.norm()))


def test_without_conv_rank_only_attention_and_text_encoders(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(*pair, tmp_path / "o.safetensors", ranks=(4,))
    lora = models.read(tmp_path / "o.safetensors")
    unet = {name for name in models.names(lora) if name.startswith("lora_unet_")}
    assert len(unet) == 3 * 12
    assert all("_transformer_blocks_" in name or name.endswith(("proj_in", "proj_out")) for name in unet)
    assert len(models.names(lora)) - len(unet) == 2 * 6 + 2 * 6


def test_merging_gives_the_tuned_model_to_the_stated_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """For float16 too: the error that is reported is of what is in the file, rounding included."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        out = tmp_path / f"{dtype}.safetensors"
        result = run(*pair, out, ranks=(8,), dtype=dtype)
        base, tuned, lora = models.read(pair[0]), models.read(pair[1]), models.read(out)
        stated = {kept.module.name: kept.error for kept in result.files[0].modules}
        exact = difference(base, tuned, ATTENTION_KEY)
        merged = base[ATTENTION_KEY].double() + models.product(lora, ATTENTION)
        missing = float((tuned[ATTENTION_KEY].double() - merged).norm() / exact.norm())
        assert stated[ATTENTION] == pytest.approx(missing, rel=2e-2)
        with safe_open(str(out), "pt") as file:
            written = json.loads(file.metadata()["kohya_ext_lora_errors"])
        assert written[ATTENTION] == [8, pytest.approx(missing, rel=2e-2)]


def test_several_ranks_from_one_pass_equal_single_extractions(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*pair, tmp_path / "o.safetensors", ranks=(12, 4), conv_ranks=(6, 2), method="exact")
    paths = [written.path.name for written in result.files]
    assert paths == ["o-rank12.safetensors", "o-rank4.safetensors"]
    for rank, conv in ((12, 6), (4, 2)):
        run(*pair, tmp_path / "single.safetensors", ranks=(rank,), conv_ranks=(conv,), method="exact")
        one, many = models.read(tmp_path / "single.safetensors"), models.read(tmp_path / f"o-rank{rank}.safetensors")
        assert one.keys() == many.keys()
        for name in models.names(one):
            exact = models.product(one, name)
            assert torch.allclose(exact, models.product(many, name), atol=2e-3 * float(exact.abs().max())), name


def test_extracting_low_is_extracting_high_and_resizing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The guide's claim about 512 and 16, at a size for a test: truncating twice is truncating once."""
    high, low, resized = (tmp_path / f"{name}.safetensors" for name in ("high", "low", "resized"))
    run(*pair, high, ranks=(20,), conv_ranks=(20,), method="exact", **FLOAT)
    run(*pair, low, ranks=(4,), conv_ranks=(4,), method="exact", **FLOAT)
    settings = ResizeSettings(rank=4)
    resize(opened(high, settings), resized, settings)
    one, two = models.read(low), models.read(resized)
    assert one.keys() == two.keys()
    for name in models.names(one):
        exact = models.product(one, name)
        assert torch.allclose(exact, models.product(two, name), atol=1e-5 * float(exact.norm())), name


def test_extracting_at_16_is_extracting_at_512_and_resizing(tmp_path: Path) -> None:
    """The guide's claim in its own numbers, on layers large enough for them."""
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0"
    shapes = {f"{block}.attn1.to_q.weight": (640, 600), f"{block}.ff.net.2.weight": (560, 700)}
    weights = models.random_weights({"model.diffusion_model.label_emb.0.0.weight": (4, 4), **shapes})
    base = models.save(weights, tmp_path / "base.safetensors")
    tuned = models.save(models.changed(weights), tmp_path / "tuned.safetensors")
    run(base, tuned, tmp_path / "low.safetensors", ranks=(16,), method="exact", **FLOAT)
    run(base, tuned, tmp_path / "high.safetensors", ranks=(512,), method="exact", **FLOAT)
    settings = ResizeSettings(rank=16)
    resize(opened(tmp_path / "high.safetensors", settings), tmp_path / "resized.safetensors", settings)
    one, two = models.read(tmp_path / "low.safetensors"), models.read(tmp_path / "resized.safetensors")
    assert one.keys() == two.keys() and len(models.names(one)) == 2
    for name in models.names(one):
        exact = models.product(one, name)
        assert float((exact - models.product(two, name)).norm()) < 1e-5 * float(exact.norm()), name


def test_ranks_by_energy(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*pair, tmp_path / "o.safetensors", ranks=(30,), energy=0.9, method="exact", **FLOAT)
    base, tuned = models.read(pair[0]), models.read(pair[1])
    squares = torch.linalg.svdvals(difference(base, tuned, ATTENTION_KEY)).square()
    expected = int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1
    ranks = {kept.module.name: kept.rank for kept in result.files[0].modules}
    assert ranks[ATTENTION] == expected < 30
    assert all(kept.error**2 <= 0.1001 for kept in result.files[0].modules if kept.rank < kept.module.rank)
    assert result.files[0].metadata["ss_network_dim"] == "Dynamic"


def test_ranks_by_file_size(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As large as allowed, and no larger."""
    for budget in (60_000, 110_000):
        sized = run(*pair, tmp_path / f"{budget}.safetensors", ranks=(24,), size=budget).files[0]
        assert 0.9 * budget < sized.path.stat().st_size == sized.size <= budget
        ranks = {kept.rank for kept in sized.modules}
        assert 1 <= min(ranks) < max(ranks) <= 24
    with pytest.raises(UsageError, match="even rank 1"):
        run(*pair, tmp_path / "no.safetensors", ranks=(24,), size=10_000)
    assert not (tmp_path / "no.safetensors").exists()


def test_a_single_file_and_a_folder_give_the_same(tmp_path: Path) -> None:
    shapes = models.sdxl_folder()
    folder = {part: models.random_weights(shapes[part], seed) for seed, part in enumerate(shapes)}
    tuned = {part: models.changed(weights) for part, weights in folder.items()}
    base_folder = models.save_folder(folder, tmp_path / "base")
    tuned_folder = models.save_folder(tuned, tmp_path / "tuned")
    single = as_single_file(tuned)
    tuned_file = models.save(single, tmp_path / "tuned.safetensors")
    first = run(base_folder, tuned_folder, tmp_path / "1.safetensors", ranks=(4,), conv_ranks=(4,), method="exact")
    second = run(base_folder, tuned_file, tmp_path / "2.safetensors", ranks=(4,), conv_ranks=(4,), method="exact")
    assert not first.unchanged and not second.unchanged
    one, two = models.read(tmp_path / "1.safetensors"), models.read(tmp_path / "2.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert len(models.names(one)) == 36 + 2 * 4 + 2 + 24


def as_single_file(folder: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `models.sdxl_folder()` holds, renamed by hand."""
    unet = folder["unet"]
    places = {
        "down_blocks.1.resnets.0": "input_blocks.4.0",
        "down_blocks.1.attentions.0": "input_blocks.4.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.1.attentions.2": "output_blocks.5.1",
        "add_embedding.linear_1": "label_emb.0.0",
        "conv_in": "input_blocks.0.0",
    }
    inner = {
        ".conv1.": ".in_layers.2.", ".time_emb_proj.": ".emb_layers.1.", ".conv2.": ".out_layers.3.",
        ".conv_shortcut.": ".skip_connection.", ".norm1.": ".in_layers.0.",
    }  # fmt: skip
    result = {}
    for key, value in unet.items():
        place = next(place for place in places if key.startswith(place))
        renamed = key.replace(place, places[place], 1)
        for hf, ldm in inner.items():
            renamed = renamed.replace(hf, ldm)
        result[f"model.diffusion_model.{renamed}"] = value
    for key, value in folder["text_encoder"].items():
        result[f"conditioner.embedders.0.transformer.{key}"] = value
    second = folder["text_encoder_2"]
    prefix = "conditioner.embedders.1.model.transformer.resblocks"
    for layer in range(2):
        name = f"text_model.encoder.layers.{layer}"
        parts = [second[f"{name}.self_attn.{part}_proj.weight"] for part in "qkv"]
        result[f"{prefix}.{layer}.attn.in_proj_weight"] = torch.cat(parts)
        result[f"{prefix}.{layer}.attn.out_proj.weight"] = second[f"{name}.self_attn.out_proj.weight"]
        result[f"{prefix}.{layer}.mlp.c_fc.weight"] = second[f"{name}.mlp.fc1.weight"]
        result[f"{prefix}.{layer}.mlp.c_proj.weight"] = second[f"{name}.mlp.fc2.weight"]
    return result


def test_sd1_modules_have_diffusers_names_and_keep_their_convolutions(tmp_path: Path) -> None:
    weights = models.random_weights(models.sd1())
    base = models.save(weights, tmp_path / "b.safetensors")
    tuned = models.save(models.changed(weights), tmp_path / "t.safetensors")
    result = run(base, tuned, tmp_path / "o.safetensors", ranks=(4,), conv_ranks=(4,))
    lora = models.read(tmp_path / "o.safetensors")
    assert lora["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].shape == (4, models.WIDTH, 1, 1)
    assert lora["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"].shape == (models.WIDTH, 4, 1, 1)
    assert lora["lora_unet_down_blocks_0_downsamplers_0_conv.lora_down.weight"].shape == (4, models.WIDTH, 3, 3)
    expected = {"down_blocks_0_resnets_0_conv1", "up_blocks_0_upsamplers_0_conv", "up_blocks_1_attentions_0_proj_out"}
    assert {f"lora_unet_{name}" for name in expected} <= models.names(lora)
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in models.names(lora)
    assert result.files[0].metadata["ss_base_model_version"] == "sd_v1"


def test_flux_blocks(tmp_path: Path) -> None:
    weights = models.random_weights(models.flux())
    base = models.save(weights, tmp_path / "b.safetensors", torch.bfloat16)
    tuned = models.save(models.changed(weights), tmp_path / "t.safetensors", torch.bfloat16)
    result = run(base, tuned, tmp_path / "o.safetensors", ranks=(4,))
    assert models.names(models.read(tmp_path / "o.safetensors")) == {
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_double_blocks_0_img_mod_lin",
        "lora_unet_single_blocks_3_linear1",
    }
    assert result.files[0].metadata["ss_network_module"] == "networks.lora_flux"


def test_the_file_tells_where_it_comes_from(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "my lora.safetensors"
    run(*pair, out, ranks=(4,), conv_ranks=(2,))
    with safe_open(str(out), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "4.0"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "4.0"}
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["ss_new_sd_model_hash"] == hashlib.sha256(pair[0].read_bytes()).hexdigest()
    assert metadata["kohya_ext_lora_tuned_sha256"] == hashlib.sha256(pair[1].read_bytes()).hexdigest()
    data = out.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()


def test_clamping_is_sd_scripts_and_its_damage_is_reported(pair: tuple[Path, Path], tmp_path: Path) -> None:
    plain = run(*pair, tmp_path / "p.safetensors", ranks=(6,), **FLOAT).files[0]
    clamped = run(*pair, tmp_path / "c.safetensors", ranks=(6,), clamp=0.95, **FLOAT).files[0]
    lora = models.read(tmp_path / "c.safetensors")
    up, down = lora[f"{ATTENTION}.lora_up.weight"], lora[f"{ATTENTION}.lora_down.weight"]
    largest = max(float(up.abs().max()), float(down.abs().max()))
    both = torch.cat([up.flatten(), down.flatten()])
    assert float((both.abs() == largest).float().mean()) > 0.05  # both tails are cut at one value
    exact = difference(models.read(pair[0]), models.read(pair[1]), ATTENTION_KEY)
    missing = float((exact - models.product(lora, ATTENTION)).norm() / exact.norm())
    stated = {kept.module.name: kept.error for kept in clamped.modules}
    assert stated[ATTENTION] == pytest.approx(missing, rel=0.05)
    assert clamped.error > plain.error


def test_what_does_not_differ_stays_out_and_is_named(tmp_path: Path, base_weights: dict[str, Tensor]) -> None:
    tuned = models.changed(base_weights, ("model.diffusion_model.middle_block", "conditioner.embedders.0"))
    base_path = models.save(base_weights, tmp_path / "b.safetensors")
    tuned_path = models.save(tuned, tmp_path / "t.safetensors")
    result = run(base_path, tuned_path, tmp_path / "o.safetensors", ranks=(4,))
    names = models.names(models.read(tmp_path / "o.safetensors"))
    assert len(result.unchanged) == 12 and all("middle_block" in name for name in result.unchanged)
    assert not names & set(result.unchanged)
    assert not any(name.startswith("lora_te1") for name in names)
    with pytest.raises(UsageError, match="nothing to extract"):
        run(base_path, base_path, tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()


def test_models_that_do_not_fit_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    weights = models.read(pair[1])
    other = models.save(models.random_weights(models.sd1()), tmp_path / "sd1.safetensors")
    with pytest.raises(UsageError, match=r"SDXL.*SD1"):
        run(pair[0], other, tmp_path / "o.safetensors")
    shaped = {**weights, ATTENTION_KEY: torch.zeros(models.WIDTH, models.CONTEXT + 1)}
    with pytest.raises(UsageError, match=f"shape of 1 modules: {ATTENTION}"):
        run(pair[0], models.save(shaped, tmp_path / "s.safetensors"), tmp_path / "o.safetensors")
    fewer = {key: value for key, value in weights.items() if key != ATTENTION_KEY}
    for base, tuned in ((pair[0], tmp_path / "f.safetensors"), (tmp_path / "f.safetensors", pair[0])):
        models.save(fewer, tmp_path / "f.safetensors")
        with pytest.raises(UsageError, match="lacks 1 modules"):
            run(base, tuned, tmp_path / "o.safetensors")
    broken = {**weights, ATTENTION_KEY: weights[ATTENTION_KEY].clone().fill_(float("nan"))}
    with pytest.raises(UsageError, match=r"nan\.safetensors: .*attn2\.to_k.* not numbers"):
        run(pair[0], models.save(broken, tmp_path / "nan.safetensors"), tmp_path / "o.safetensors")
    with pytest.raises(UnsupportedError, match="not a model of SD 1"):
        run(
            pair[0],
            models.save({"a.weight": torch.zeros(2, 2)}, tmp_path / "u.safetensors"),
            tmp_path / "o.safetensors",
        )
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{name}.safetensors" for name in ("base", "tuned", "sd1", "s", "f", "nan", "u")}


def test_the_inputs_are_not_written_to(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = [path.read_bytes() for path in pair]
    run(*pair, tmp_path / "o.safetensors", ranks=(4,), clamp=0.9)
    assert [path.read_bytes() for path in pair] == before
