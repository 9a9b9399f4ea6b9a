"""Images by diffusers itself, from tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("imagehash")
import torch
from PIL import ImageChops

from kohya_ext.cli.main import main
from kohya_ext.core.errors import DONE, WRONG_USAGE, UsageError
from kohya_ext.evaluation.diffusers_renderer import DiffusersRenderer, RenderSettings
from kohya_ext.evaluation.models import columns
from kohya_ext.evaluation.promptfile import Prompt
from tests.evaluation.painter import CHECKPOINT_KEYS, LORA_KEYS, models, training_set
from tests.evaluation.pipelines import save

PROMPT = Prompt("a red fox", 64, 64, steps=2, cfg=2.0, seed=3)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    save(folder / "models" / "femme", 1)
    save(folder / "models" / "femme-ema", 2)
    return folder


def same(one: Any, other: Any) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


def test_a_seed_is_an_image(pipelines: Path) -> None:
    raw, average = columns([pipelines / "models" / "femme"])
    renderer = DiffusersRenderer(RenderSettings(device="cpu"))
    renderer.load(raw)
    first = renderer.draw(PROMPT)
    assert first.size == (64, 64) and same(first, renderer.draw(PROMPT))
    assert not same(first, renderer.draw(Prompt("a red fox", 64, 64, 2, 2.0, 4)))
    renderer.load(average)
    assert average.average and not same(first, renderer.draw(PROMPT))


def test_the_whole_way(pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = training_set(tmp_path / "set", ["a b", "c d"])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox --w 64 --h 64 --s 1 --l 1 --d 1\n")
    words = ["grid", str(pipelines / "models"), "--prompts", str(prompts), "--output", str(tmp_path / "out")]
    assert main([*words, "--images", str(images), "--json"]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert [model["label"] for model in document["models"]] == ["femme", "femme, EMA"]
    assert (tmp_path / "out" / "grid.html").stat().st_size > 5000 and (tmp_path / "out" / "grid.png").exists()


def test_a_damaged_folder(pipelines: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be loaded by diffusers"):
        DiffusersRenderer(RenderSettings(device="cpu")).load(columns([tmp_path / "bad"])[0])


def test_a_single_file_without_its_configuration(tmp_path: Path) -> None:
    column = columns(models(tmp_path, "full", keys=CHECKPOINT_KEYS))[0]
    with pytest.raises(UsageError, match=r"full\.safetensors cannot be loaded"):
        DiffusersRenderer(RenderSettings(device="cpu", config=tmp_path / "absent")).load(column)


@pytest.mark.parametrize("name", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}: torch has no such device"):
        DiffusersRenderer(RenderSettings(device=name))


def test_a_lora_without_a_base(tmp_path: Path) -> None:
    column = columns(models(tmp_path, "lora", keys=LORA_KEYS))[0]
    with pytest.raises(UsageError, match="--base"):
        DiffusersRenderer(RenderSettings(device="cpu")).load(column)


def test_a_lora_that_does_not_fit(pipelines: Path, tmp_path: Path) -> None:
    """Or that needs peft, where that is missing: an error either way, and the next model is drawn all the same."""
    base = columns([pipelines / "models" / "femme"], averages=False)[0]
    column = columns(models(tmp_path, "lora", keys=LORA_KEYS))[0]
    renderer = DiffusersRenderer(RenderSettings(base=base, device="cpu"))
    with pytest.raises(UsageError, match=r"lora\.safetensors cannot be applied to"):
        renderer.load(column)
    renderer.load(base)
    assert renderer.draw(PROMPT).size == (64, 64)


def test_clip(tmp_path: Path) -> None:
    """With a tiny random CLIP: the same image is a copy, and nothing is fetched."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    from kohya_ext.evaluation.memorization import Clip, TrainingImages
    from tests.evaluation.painter import image

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=16,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(str(tmp_path / "clip"))
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        str(tmp_path / "clip")
    )
    images = training_set(tmp_path / "set", ["a b", "c d"])
    found = TrainingImages(images, [Path("0.png"), Path("5_x/1.jpg")], Clip(str(tmp_path / "clip")))
    nearest = found.nearest(image("a b", (320, 256)))
    assert nearest.path == "0.png" and nearest.copy and nearest.likeness == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match="is not on this machine"):
        Clip(str(tmp_path / "absent"))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("a --d 1\n")
    file = models(tmp_path / "models", "full")[0]
    words = ["grid", str(file), "--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "out")]
    assert main([*words, "--config", str(tmp_path / "absent"), "--device", "cpu"]) == WRONG_USAGE
    assert "cannot be loaded by diffusers" in capsys.readouterr().err
