"""Resizing against the full SVD of every product, in each key format, with alpha kept right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.lora.rank import dynamic
from kohya_ext.lora.resize import Resized, ResizeSettings, opened
from kohya_ext.lora.resize import run as run_resize
from tests.lora import models

RANK = 12


def factors(seed: int, out: int = 40, width: int = 30, rank: int = RANK) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator) / torch.arange(1, rank + 1)
    return up, torch.randn(rank, width, generator=generator)


def kohya(alpha: float | None = 6.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A linear layer, a 1x1 and a 3x3 convolution."""
    tensors = {}
    for seed, (name, width, kernel) in enumerate(
        (("lora_unet_linear", 30, ()), ("lora_unet_proj_in", 30, (1, 1)), ("lora_unet_conv", 27, (3, 3)))
    ):
        up, down = factors(seed, width=width)
        columns = 3 if kernel == (3, 3) else width
        tensors[f"{name}.lora_down.weight"] = down.view(RANK, columns, *kernel).to(dtype)
        tensors[f"{name}.lora_up.weight"] = up.view(-1, RANK, *(1 for _ in kernel)).to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def resize(
    tensors: dict[str, Tensor], folder: Path, metadata: dict[str, str] | None = None, **settings: object
) -> Resized:
    source = folder / "in.safetensors"
    save_file(tensors, str(source), metadata)
    chosen = ResizeSettings(**settings)  # type: ignore[arg-type]
    return run_resize(opened(source, chosen), folder / "out.safetensors", chosen)


@pytest.mark.parametrize("alpha", [6.0, 1.0, 12.0])
def test_every_module_is_the_truncated_svd_of_its_product(tmp_path: Path, alpha: float) -> None:
    resize(kohya(alpha), tmp_path, rank=5, conv_rank=3)
    before, after = kohya(alpha), models.read(tmp_path / "out.safetensors")
    assert after.keys() == before.keys()
    for name in models.names(before):
        rank = 3 if name.endswith("_conv") else 5
        best = models.truncated(models.product(before, name), rank)
        assert torch.allclose(models.product(after, name), best, atol=1e-6 * float(best.abs().max())), name
        assert float(after[f"{name}.alpha"]) == pytest.approx(alpha / RANK * 5, rel=1e-6), "one for all"
        assert after[f"{name}.lora_up.weight"].shape[2:] == before[f"{name}.lora_up.weight"].shape[2:]
        assert after[f"{name}.lora_down.weight"].shape[1:] == before[f"{name}.lora_down.weight"].shape[1:]


def test_a_higher_rank_changes_nothing(tmp_path: Path) -> None:
    resize(kohya(), tmp_path, rank=99)
    after = models.read(tmp_path / "out.safetensors")
    for name in models.names(after):
        exact = models.product(kohya(), name)
        assert torch.allclose(models.product(after, name), exact, atol=2e-6 * float(exact.abs().max()))
        assert after[f"{name}.lora_down.weight"].shape[0] == RANK


def test_the_type_is_kept_or_chosen(tmp_path: Path) -> None:
    resize(kohya(dtype=torch.float16), tmp_path, rank=4)
    assert models.read(tmp_path / "out.safetensors")["lora_unet_linear.lora_up.weight"].dtype == torch.float16
    resize(kohya(dtype=torch.float16), tmp_path, rank=4, dtype=torch.bfloat16)
    assert models.read(tmp_path / "out.safetensors")["lora_unet_linear.lora_up.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("suffix", [".lora_{}.weight", ".lora_{}.default.weight"])
def test_peft_keys(tmp_path: Path, suffix: str) -> None:
    """No alpha in, none out where one rank rules; with mixed ranks loaders need one."""
    name = "base_model.model.unet.down.0.attn.to_q"
    up, down = factors(0)
    tensors = {name + suffix.format("A"): down, name + suffix.format("B"): up}
    resize(tensors, tmp_path, rank=4)
    after = models.read(tmp_path / "out.safetensors")
    assert after.keys() == tensors.keys()
    best = models.truncated(up.double() @ down.double(), 4)
    found = after[name + suffix.format("B")].double() @ after[name + suffix.format("A")].double()
    assert torch.allclose(found, best, atol=1e-5)


def test_peft_with_mixed_ranks_is_padded_to_one(tmp_path: Path) -> None:
    """diffusers takes one rank and no `.alpha`; padding with zeros is right in every loader."""
    tensors: dict[str, Tensor] = {}
    for seed, name in enumerate(("a.to_q", "a.to_k")):
        up, down = factors(seed)
        tensors |= {
            f"{name}.lora_A.weight": down,
            f"{name}.lora_B.weight": up / (1 if seed else torch.arange(1, 13) ** 2),
        }
    result = resize(tensors, tmp_path, rank=9, dynamic="sv_ratio", parameter=12.0)
    after = models.read(tmp_path / "out.safetensors")
    assert after.keys() == tensors.keys()
    ranks = {kept.module.name: kept.rank for kept in result.written.modules}
    assert ranks["a.to_q"] < ranks["a.to_k"]
    for name, rank in ranks.items():
        assert after[f"{name}.lora_A.weight"].shape[0] == after[f"{name}.lora_B.weight"].shape[1] == ranks["a.to_k"]
        assert not after[f"{name}.lora_A.weight"][rank:].any() and not after[f"{name}.lora_B.weight"][:, rank:].any()
        wanted = models.truncated(tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"], rank)
        found = after[f"{name}.lora_B.weight"].double() @ after[f"{name}.lora_A.weight"].double()
        assert torch.allclose(found, wanted, atol=1e-5)
    assert any("padded" in note for note in result.notes)


@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_the_scale_of_a_peft_adapter_goes_into_the_factors(tmp_path: Path, where: str) -> None:
    up, down = factors(0)
    tensors = {"x.lora_A.weight": down, "x.lora_B.weight": up}
    config = json.dumps({"unet.r": RANK, "unet.lora_alpha": 6} if where == "metadata" else {"r": RANK, "lora_alpha": 6})
    source = tmp_path / "adapter_model.safetensors"
    save_file(tensors, str(source), {"lora_adapter_metadata": config} if where == "metadata" else None)
    if where == "beside":
        (tmp_path / "adapter_config.json").write_text(config)
    settings = ResizeSettings(rank=RANK)
    result = run_resize(opened(source, settings), tmp_path / "out.safetensors", settings)
    after = models.read(tmp_path / "out.safetensors")
    found = after["x.lora_B.weight"].double() @ after["x.lora_A.weight"].double()
    assert torch.allclose(found, 0.5 * up.double() @ down.double(), atol=1e-5)
    assert "lora_adapter_metadata" not in result.written.metadata
    assert any("lora_alpha" in note for note in result.notes)


def test_other_tensors_are_carried_over(tmp_path: Path) -> None:
    tensors = {**kohya(), "lora_unet_linear.diff_b": torch.ones(40), "bundle_emb.x": torch.arange(4)}
    result = resize(tensors, tmp_path, rank=4)
    after = models.read(tmp_path / "out.safetensors")
    assert torch.equal(after["bundle_emb.x"], torch.arange(4)) and "lora_unet_linear.diff_b" in after
    assert any("2 tensors" in note for note in result.notes)


def test_a_module_of_zeros_keeps_rank_one(tmp_path: Path) -> None:
    tensors = {key: torch.zeros_like(value) if "lora_up" in key else value for key, value in kohya().items()}
    resize(tensors, tmp_path, rank=4)
    after = models.read(tmp_path / "out.safetensors")
    assert after["lora_unet_linear.lora_down.weight"].shape[0] == 1
    assert not after["lora_unet_linear.lora_up.weight"].any()


def test_dynamic_ranks_by_their_definitions() -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    assert dynamic(values, "sv_ratio", 4.0, 5) == 2  # above 8 / 4, so not 2 itself
    assert dynamic(values, "sv_ratio", 4.1, 5) == 3
    assert dynamic(values, "sv_cumulative", 12 / 15.5, 5) == 2
    assert dynamic(values, "sv_cumulative", 12.01 / 15.5, 5) == 3
    norm = float(values.norm())
    assert dynamic(values, "sv_fro", 80**0.5 / norm * 0.9999, 5) == 2
    assert dynamic(values, "sv_fro", 80**0.5 / norm * 1.0001, 5) == 3
    assert dynamic(values, "sv_fro", 1.0, 3) == 3
    assert dynamic(values * 1e-8, "sv_fro", 0.9, 5) == 1
    assert dynamic(values, "sv_ratio", 1.0, 5) == 1


@pytest.mark.parametrize(("method", "parameter"), [("sv_ratio", 6.0), ("sv_fro", 0.95), ("sv_cumulative", 0.7)])
def test_dynamic_ranks_keep_the_scale(tmp_path: Path, method: str, parameter: float) -> None:
    result = resize(kohya(3.0), tmp_path, rank=10, dynamic=method, parameter=parameter)
    after = models.read(tmp_path / "out.safetensors")
    for kept in result.written.modules:
        values = torch.linalg.svdvals(models.product(kohya(float(RANK)), kept.module.name))
        assert kept.rank == dynamic(values[:RANK], method, parameter, 10)
        wanted = models.truncated(models.product(kohya(3.0), kept.module.name), kept.rank)
        assert torch.allclose(models.product(after, kept.module.name), wanted, atol=1e-5)
    assert len({float(value) for key, value in after.items() if key.endswith(".alpha")}) == 1
    assert result.written.metadata["ss_training_comment"].startswith(f"dynamic resize with {method}")


def test_metadata_is_kept_and_brought_up_to_date(tmp_path: Path) -> None:
    old = {"ss_tag_frequency": "{}", "ss_network_dim": "12", "ss_training_comment": "mine", "ss_output_name": "x"}
    resize(kohya(), tmp_path, old, rank=4)
    with safe_open(str(tmp_path / "out.safetensors"), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_tag_frequency"] == "{}" and metadata["ss_output_name"] == "x"
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "2.0"
    assert metadata["ss_training_comment"] == "resized from rank 12 to 4; mine"


def test_what_cannot_be_resized_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="LoHa"):
        resize({"x.hada_w1_a": torch.ones(2, 2)}, tmp_path)
    with pytest.raises(UsageError, match="no LoRA"):
        resize({"x.weight": torch.ones(2, 2)}, tmp_path)
    lonely = {key: value for key, value in kohya().items() if "conv.lora_up" not in key}
    with pytest.raises(UsageError, match="lora_down.weight is present".replace(".", "[.]")):
        resize(lonely, tmp_path)
    with pytest.raises(UsageError, match="do not fit together"):
        resize({**kohya(), "lora_unet_linear.lora_up.weight": torch.ones(40, 5)}, tmp_path)
    with pytest.raises(UsageError, match="not numbers"):
        resize({**kohya(), "lora_unet_linear.lora_up.weight": torch.full((40, RANK), torch.nan)}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
