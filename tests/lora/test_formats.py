"""Every format of a LoRA: resized as well as can be, at its scale, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.lora.pairs import read_pairs
from kohya_ext.lora.resize import Resized, ResizeSettings, opened, run
from kohya_ext.tensors.tensorfile import open_tensors
from tests.lora import models
from tests.lora.formats import LoraSpec, accepted, refused

WAYS: dict[str, dict[str, Any]] = {
    "rank": {"rank": 4},
    "as it is": {"rank": 99},
    "dynamic": {"rank": 6, "dynamic": "sv_fro", "parameter": 0.9},
    "size": {"rank": 8, "size": 0},
}
ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6}
EPSILON = 1e-9


def resized(made: LoraSpec, folder: Path, **settings: object) -> tuple[Resized, Path]:
    source = made.save(folder / "in")
    if settings.get("size") == 0:
        settings["size"] = int(0.75 * source.stat().st_size) + 4000
    out = folder / "out.safetensors"
    chosen = ResizeSettings(**settings)  # type: ignore[arg-type]
    return run(opened(source, chosen), out, chosen), out


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("made", accepted(), ids=lambda made: made.name)
def test_error_and_scale(made: LoraSpec, way: str, tmp_path: Path) -> None:
    """Against the full SVD in float64 of what the file means, at the rank that came out."""
    result, out = resized(made, tmp_path, **WAYS[way])
    after = models.read(out)
    ranks = {kept.module.name: kept.rank for kept in result.written.modules}
    assert len(ranks) == len(made.parts)
    assert "lora_adapter_metadata" not in result.written.metadata
    names = {pair.keys.down: pair.name for pair in read_pairs(open_tensors(tmp_path / "in" / _name(made))).pairs}
    by_name = {kept.module.name: kept for kept in result.written.modules}
    for part in made.parts:
        kept = by_name[names[part.down]]
        exact = made.product(part, made.tensors, part.scale)
        found = made.product(part, after)
        optimum = models.truncated(exact, kept.rank)
        error, least = float((found - exact).norm()), float((optimum - exact).norm())
        room = ROUNDING[after[part.down].dtype] * float(exact.norm())
        assert error <= 1.001 * least + room, f"{part.down}: {error} of {least}"
        alignment = float((found * optimum).sum() / optimum.square().sum())
        assert alignment == pytest.approx(1, abs=2e-3), f"{part.down}: scale {alignment}"
        assert kept.error * float(exact.norm()) == pytest.approx(error, abs=2 * room + 1e-3 * least)
    if way == "as it is":
        for part in made.parts:
            if part.scale == 1 or part.alpha:
                same = part.mid is None and made.tensors[part.down].dtype == after[part.down].dtype
                assert not same or torch.equal(after[part.down], made.tensors[part.down])
    if way == "size":
        assert result.written.size <= int(0.75 * open_tensors(tmp_path / "in" / _name(made)).path.stat().st_size) + 4000


def _name(made: LoraSpec) -> str:
    return "adapter_model.safetensors" if made.config else f"{made.name}.safetensors"


@pytest.mark.parametrize("made", accepted(), ids=lambda made: made.name)
def test_a_file_without_alphas_stays_one(made: LoraSpec, tmp_path: Path) -> None:
    """An alpha goes only to modules that had one, but in sd-scripts' spelling; without, one rank for each network."""
    _, out = resized(made, tmp_path, rank=6, dynamic="sv_fro", parameter=0.9)
    after = models.read(out)
    kohya = all(".lora_up." in part.up for part in made.parts)
    silent = not any(part.alpha for part in made.parts)
    if not (kohya and silent):
        before = {key for key in made.tensors if key.endswith("alpha")}
        assert {key for key in after if key.endswith("alpha")} == before
    if silent and not kohya and len({made.tensors[part.down].shape[0] for part in made.parts}) == 1:
        for prefix in ("unet.", "text_encoder.", "text_encoder_2.", "transformer.", ""):
            inside = {
                after[p.down].shape[0] for p in made.parts if p.down.startswith(prefix) and (prefix or "." in p.down)
            }
            if prefix:
                assert len(inside) <= 1


@pytest.mark.parametrize("made", refused(), ids=lambda made: made.name)
def test_refused_by_name(made: LoraSpec, tmp_path: Path) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=made.refused):
        resized(made, tmp_path, rank=4)
    assert not (tmp_path / "out.safetensors").exists()


def test_there_are_enough_formats() -> None:
    names = [made.name for made in (*accepted(), *refused())]
    assert len(names) == len(set(names)) >= 63


def test_peft_finds_its_configuration(tmp_path: Path) -> None:
    made = next(made for made in accepted() if made.config)
    source = made.save(tmp_path / "in")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "adapter_model.safetensors"
    settings = ResizeSettings(rank=4)
    result = run(opened(source, settings), out, settings)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 and config["target_modules"] == ["to_q"]
    assert any("adapter_config.json was written" in note for note in result.notes)
    again = run(opened(out, settings), tmp_path / "again.safetensors", settings)
    assert any("must have r = lora_alpha = 4" in note for note in again.notes)
