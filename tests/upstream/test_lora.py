"""Our LoRA next to sd-scripts' own, and in the hands of sd-scripts and diffusers.

The rig's tiny SDXL, a fine-tune of it made by hand, and the real scripts of the rig's tree.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kohya_ext.lora import extract
from kohya_ext.lora.extract import Extraction, ExtractSettings
from kohya_ext.lora.resize import ResizeSettings as ResizeSettings
from kohya_ext.lora.resize import opened
from kohya_ext.lora.resize import run as resize
from tests.lora import models
from tests.upstream import rig

pytestmark = pytest.mark.upstream

TREE, NEWEST = "sd-scripts-main", "sd-scripts-0.11.1"
RANK, CONV_RANK = 8, 4
ROUNDING = 2e-5  # of a product's norm: two float32 SVDs of the same matrix


@pytest.fixture(scope="module")
def base() -> Path:
    rig.require_rig(TREE)
    return rig.work() / "assets" / "tiny_sdxl.safetensors"


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(models.changed(models.read(base)), tmp_path_factory.mktemp("tuned") / "tuned.safetensors")


def script(name: str, *arguments: object, tree: str = TREE) -> None:
    """Run one of the real tools in the rig's tree and environment."""
    folder = rig.work() / "trees" / tree
    shim = Path(os.environ["KOHYA_RIG"]) / "shim"
    python = rig.work() / "venv" / rig.TREES[tree] / "bin" / "python"
    environment = {**os.environ, "RIG_TINY": "1", "PYTHONPATH": f"{shim}:{folder}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(python), str(folder / "networks" / name), *map(str, arguments)],
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def ours(base: Path, tuned: Path, out: Path, **settings: object) -> Extraction:
    chosen = ExtractSettings(**settings)  # type: ignore[arg-type]
    return extract.run(extract.plan(base, tuned, chosen), out, chosen)


@pytest.fixture(scope="module")
def theirs(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], dict[str, Tensor]]:
    """sd-scripts' extraction, with or without 3x3 convolutions."""
    found: dict[bool, dict[str, Tensor]] = {}

    def run(conv: bool) -> dict[str, Tensor]:
        if conv not in found:
            out = tmp_path_factory.mktemp("theirs") / "lora.safetensors"
            script(
                "extract_lora_from_models.py", "--sdxl", "--model_org", base, "--model_tuned", tuned, "--save_to", out,
                "--dim", RANK, "--device", "cpu", "--save_precision", "float", "--clamp_quantile", 1,
                "--min_diff", 1e-6, *(("--conv_dim", CONV_RANK) if conv else ()),
            )  # fmt: skip
            found[conv] = models.read(out)
        return found[conv]

    return run


def clipped_alike(our: dict[str, Tensor], their: dict[str, Tensor], name: str) -> Tensor:
    """Our product after the only thing that a clamp of 1 does: elements below minus the largest one are cut.

    Which these are depends on the signs that their SVD happened to choose, so ours are turned that way first.
    """
    up, down = (our[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    scale = float(our[f"{name}.alpha"]) / down.shape[0]  # ours keeps one alpha for all modules
    sizes = up.norm(dim=0) * down.norm(dim=1) * scale
    left, right = up / up.norm(dim=0) * sizes, down / down.norm(dim=1)[:, None]
    signs = (right * their[f"{name}.lora_down.weight"].double().flatten(1)).sum(1).sign()
    left, right = left * signs, right * signs[:, None]
    limit = float(torch.cat([left.flatten(), right.flatten()]).max())
    return left.clamp(-limit, limit) @ right.clamp(-limit, limit)


@pytest.mark.parametrize("conv", [False, True])
def test_the_same_modules_and_products_as_sd_scripts(
    base: Path, tuned: Path, tmp_path: Path, theirs: Callable[[bool], dict[str, Tensor]], conv: bool
) -> None:
    conv_ranks = (CONV_RANK,) if conv else ()
    common = {"ranks": (RANK,), "conv_ranks": conv_ranks, "text_encoders": "together", "min_diff": 1e-6}
    ours(base, tuned, tmp_path / "o.safetensors", dtype=torch.float32, **common)
    our, their = models.read(tmp_path / "o.safetensors"), theirs(conv)
    assert models.names(our) == models.names(their)
    assert our.keys() == their.keys()
    for name in models.names(our):
        assert our[f"{name}.lora_down.weight"].shape == their[f"{name}.lora_down.weight"].shape
        assert our[f"{name}.lora_up.weight"].shape == their[f"{name}.lora_up.weight"].shape
        exact = models.product(their, name)
        off = float((clipped_alike(our, their, name) - exact).norm() / exact.norm())
        assert off < ROUNDING, f"{name}: {off}"


def test_sd15_has_the_modules_and_products_of_sd_scripts(base: Path, tmp_path: Path) -> None:
    old = base.with_name("tiny_sd15.safetensors")
    new = models.save(models.changed(models.read(old)), tmp_path / "tuned.safetensors")
    script(
        "extract_lora_from_models.py", "--model_org", old, "--model_tuned", new,
        "--save_to", tmp_path / "t.safetensors", "--dim", RANK, "--conv_dim", CONV_RANK, "--device", "cpu",
        "--save_precision", "float", "--clamp_quantile", 1, "--min_diff", 1e-6,
    )  # fmt: skip
    ours(old, new, tmp_path / "o.safetensors", ranks=(RANK,), conv_ranks=(CONV_RANK,), dtype=torch.float32)
    our, their = models.read(tmp_path / "o.safetensors"), models.read(tmp_path / "t.safetensors")
    assert our.keys() == their.keys() and "lora_unet_mid_block_attentions_0_proj_in.alpha" in our
    for name in models.names(our):
        assert our[f"{name}.lora_down.weight"].shape == their[f"{name}.lora_down.weight"].shape, name
        exact = models.product(their, name)
        assert float((clipped_alike(our, their, name) - exact).norm() / exact.norm()) < ROUNDING, name


def test_resizing_agrees_with_sd_scripts(base: Path, tuned: Path, tmp_path: Path) -> None:
    """Each its own file at rank 4 from one of rank 8 with 3x3 convolutions."""
    source = tmp_path / "in.safetensors"
    ours(base, tuned, source, ranks=(RANK,), conv_ranks=(RANK,), dtype=torch.float32)
    settings = ResizeSettings(rank=4, conv_rank=2)
    resize(opened(source, settings), tmp_path / "ours.safetensors", settings)
    script(
        "resize_lora.py", "--model", source, "--save_to", tmp_path / "theirs.safetensors", "--new_rank", 4,
        "--new_conv_rank", 2, "--device", "cpu", "--save_precision", "float",
    )  # fmt: skip
    our, their = models.read(tmp_path / "ours.safetensors"), models.read(tmp_path / "theirs.safetensors")
    assert our.keys() == their.keys()
    for name in models.names(our):
        # theirs takes 1x1 convolutions for 3x3 ones; SDXL of sd-scripts has them in the residual blocks
        if our[f"{name}.lora_down.weight"].shape != their[f"{name}.lora_down.weight"].shape:
            assert "skip_connection" in name
            continue
        exact = models.product(their, name)
        assert float((models.product(our, name) - exact).norm() / exact.norm()) < ROUNDING, name


@pytest.mark.parametrize(("method", "parameter"), [("sv_ratio", 3.0), ("sv_fro", 0.9), ("sv_cumulative", 0.7)])
def test_dynamic_ranks_are_those_of_sd_scripts(
    base: Path, tuned: Path, tmp_path: Path, method: str, parameter: float
) -> None:
    """Of v0.11.1; earlier releases keep one value more."""
    rig.require_rig(NEWEST)
    source = tmp_path / "in.safetensors"
    ours(base, tuned, source, ranks=(RANK,), dtype=torch.float32)
    settings = ResizeSettings(rank=6, dynamic=method, parameter=parameter)
    resize(opened(source, settings), tmp_path / "ours.safetensors", settings)
    script(
        "resize_lora.py", "--model", source, "--save_to", tmp_path / "theirs.safetensors", "--new_rank", 6,
        "--dynamic_method", method, "--dynamic_param", parameter, "--device", "cpu", "--save_precision", "float",
        "--svd_lowrank_niter", 0, tree=NEWEST,
    )  # fmt: skip
    our, their = models.read(tmp_path / "ours.safetensors"), models.read(tmp_path / "theirs.safetensors")
    ranks = {name: our[f"{name}.lora_down.weight"].shape[0] for name in models.names(our)}
    assert ranks == {name: their[f"{name}.lora_down.weight"].shape[0] for name in models.names(their)}
    assert len(set(ranks.values())) > 1
    for name in ranks:
        exact = models.product(their, name)
        assert float((models.product(our, name) - exact).norm() / exact.norm()) < ROUNDING, name


def test_sd_scripts_merges_it_to_the_stated_error(base: Path, tuned: Path, tmp_path: Path) -> None:
    result = ours(base, tuned, tmp_path / "o.safetensors", ranks=(RANK,), conv_ranks=(CONV_RANK,))
    script(
        "sdxl_merge_lora.py", "--sd_model", base, "--models", tmp_path / "o.safetensors", "--ratios", 1,
        "--save_to", tmp_path / "merged.safetensors", "--precision", "float", "--save_precision", "float",
    )  # fmt: skip
    before, after, merged = (models.read(path) for path in (base, tuned, tmp_path / "merged.safetensors"))
    seen = 0
    for kept in result.files[0].modules:
        name = kept.module.name
        key = next(
            (k for k in before if "lora_unet_" + k.removeprefix("model.diffusion_model.").removesuffix(".weight")
             .replace(".", "_") == name), None,
        )  # fmt: skip
        if key is None:  # a text encoder
            continue
        missing = float((after[key] - merged[key]).double().norm() / (after[key] - before[key]).double().norm())
        assert missing == pytest.approx(kept.error, rel=0.02, abs=1e-5), name
        seen += 1
    assert seen > 150


def test_sd_scripts_trains_on_from_it(base: Path, tuned: Path) -> None:
    """One step from the extracted file; at a learning rate of nothing it comes out as it went in."""
    out = rig.work() / "out" / "lora-extracted"
    out.mkdir(parents=True, exist_ok=True)
    path = out / "start.safetensors"
    if path.exists():
        path.unlink()
    ours(base, tuned, path, ranks=(4,), dtype=torch.float32)
    run = rig.train(
        rig.work() / "trees" / TREE, rig.TREES[TREE], ["net", "sdxl_train_network.py", "tiny_sdxl.safetensors"],
        "lora-continued", "--optimizer_type=SGD", "--learning_rate=1e-30", "--max_train_steps=1",
        "--mixed_precision=no", "--save_precision=float", f"--network_weights={path}", "--dim_from_weights",
    )  # fmt: skip
    assert run.returncode == 0, run.output[-4000:]
    before, after = models.read(path), run.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].float(), after[key].float()) for key in before)
    with safe_open(str(run.folder / "lora-continued.safetensors"), "pt") as file:
        assert file.metadata()["ss_network_module"] == "networks.lora"


def test_diffusers_loads_it(base: Path, tuned: Path, tmp_path: Path) -> None:
    """A tiny SDXL of diffusers, saved as a folder, changed, extracted; the loaded LoRA gives the changed outputs."""
    pytest.importorskip("peft", reason="diffusers loads LoRA through peft")
    from tests.lora.pipelines import run_unet, tiny_pipeline

    pipeline = tiny_pipeline(seed=0)
    pipeline.save_pretrained(tmp_path / "base")
    changed = tiny_pipeline(seed=0)
    with torch.no_grad():
        for name, parameter in changed.unet.named_parameters():
            if ".attentions." in name and parameter.ndim == 2:
                noise = torch.Generator().manual_seed(len(name))
                parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    changed.save_pretrained(tmp_path / "tuned")
    result = ours(tmp_path / "base", tmp_path / "tuned", tmp_path / "o.safetensors", ranks=(512,), dtype=torch.float32)
    assert len(result.files[0].modules) > 20
    before, wanted = run_unet(pipeline), run_unet(changed)
    pipeline.load_lora_weights(str(tmp_path), weight_name="o.safetensors")
    loaded = run_unet(pipeline)
    assert float((loaded - wanted).norm()) < 1e-3 * float((before - wanted).norm())
