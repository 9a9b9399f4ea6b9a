"""Loads the saved files of the demo's run again and draws what they can do: `python -m kohya_ext.demo.evaluate`.

A process of its own, because it imports the miniature's `library` as the training script does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from kohya_ext.demo.run import MIN_SNR_GAMMA

SAMPLE_SEED = 5
NOISE_SEED = 11
SAMPLE_STEPS = 25
CAPTIONS = ("a red circle", "a green square", "a blue triangle", "a yellow circle", "a red square", "a green triangle")


def main() -> None:
    """Draw the demo's image and write the losses, as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--training_root", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--held_out", type=Path, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("--subtitle", default="")
    parser.add_argument("--image", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.training_root))
    result = evaluate(arguments)
    print(json.dumps(result))


def evaluate(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Draws the image; the losses of every save point, for the caller."""
    from kohya_ext.demo.chart import Figure, SavePoint, draw

    images = _held_out(arguments.held_out)
    points = []
    for step, raw, ema in save_points(arguments.models, arguments.name):
        raw_pipeline, ema_pipeline = _pipeline(raw), _pipeline(ema)
        points.append(
            SavePoint(
                step,
                _loss(raw_pipeline, *images),
                _loss(ema_pipeline, *images),
                _samples(raw_pipeline),
                _samples(ema_pipeline),
            )
        )
    figure = Figure(arguments.title, arguments.subtitle, read_losses(arguments.metrics), points, CAPTIONS)
    draw(figure).save(arguments.image)
    return [{"step": p.step, "raw_loss": p.raw_loss, "ema_loss": p.ema_loss} for p in points]


def save_points(folder: Path, name: str) -> list[tuple[int, Path, Path]]:
    """(step, raw file, EMA file) of every save in mid-training, in order."""
    found = []
    for raw in sorted(folder.glob(f"{name}-step*.safetensors")):
        step = raw.stem.removeprefix(f"{name}-step")
        ema = raw.with_name(f"{name}-ema-step{step}.safetensors")
        found.append((int(step), raw, ema))
    return found


def read_losses(metrics: Path) -> list[tuple[int, float]]:
    """(step, loss) from the log of the run; an unfinished last line is skipped."""
    losses = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "loss" in row:
            losses.append((int(row["step"]), float(row["loss"])))
    return losses


def _held_out(folder: Path) -> tuple[Any, list[str]]:
    import numpy as np
    import torch
    from PIL import Image

    paths = sorted(folder.glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) for path in paths])
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(0, 3, 1, 2), captions


def _pipeline(file: Path) -> Any:
    load = _library("sdxl_model_util").load_models_from_sdxl_checkpoint
    text_encoder1, text_encoder2, vae, unet, _, _ = load(str(file))
    tokenizer = _library("model_util").CLIPTokenizer()
    pipeline = _library("sdxl_lpw_stable_diffusion").SdxlStableDiffusionLongPromptWeightingPipeline
    return pipeline([text_encoder1, text_encoder2], vae, unet, [tokenizer, tokenizer])


def _loss(pipeline: Any, pixels: Any, captions: list[str]) -> float:
    """The loss that training minimises; with the same noise and times for every model."""
    import torch

    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn(pixels.shape, generator=generator)
    functions = _library("custom_train_functions")
    scheduler = functions.DDPMScheduler()
    times = torch.linspace(20, scheduler.num_train_timesteps - 20, len(pixels)).long()
    times = times[torch.randperm(len(times), generator=generator)]
    with torch.no_grad():
        predicted = pipeline.predict(scheduler.add_noise(pixels, noise, times), times, captions)
    losses = (predicted - noise).square().mean(dim=(1, 2, 3))
    return float(functions.apply_snr_weight(losses, times, scheduler, MIN_SNR_GAMMA).mean())


def _samples(pipeline: Any) -> list[Any]:
    to_image = _library("lpw_stable_diffusion").to_image
    pixels = pipeline(list(CAPTIONS), num_inference_steps=SAMPLE_STEPS, seed=SAMPLE_SEED)
    return [to_image(sample) for sample in pixels]


def _library(module: str) -> Any:
    """A module of the miniature's `library`; `main` has put its folder on the path."""
    return importlib.import_module(f"library.{module}")


if __name__ == "__main__":
    main()
