"""A renderer that paints: quick, seeded, and overtrained on demand."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.models import Column
from kohya_ext.evaluation.promptfile import Prompt
from tests.tensors.files import write

CHECKPOINT_KEYS = {"model.diffusion_model.a": (2, 2), "conditioner.embedders.1.b": (2,)}
LORA_KEYS = {"lora_unet_a.lora_down.weight": (2, 2), "lora_te2_b.lora_up.weight": (2, 2)}


def image(seed: str, size: tuple[int, int]) -> Image.Image:
    """Large shapes in colours of the seed: images of different seeds differ in their perceptual hash."""
    chance = random.Random(seed)
    colours = [tuple(chance.randrange(256) for _ in range(3)) for _ in range(9)]
    image = Image.new("RGB", size, colours[0])
    pen = ImageDraw.Draw(image)
    for colour in colours[1:]:
        left, top = chance.uniform(-0.2, 0.8) * size[0], chance.uniform(-0.2, 0.8) * size[1]
        right, bottom = left + chance.uniform(0.2, 0.6) * size[0], top + chance.uniform(0.2, 0.6) * size[1]
        (pen.ellipse if chance.random() < 0.5 else pen.rectangle)((left, top, right, bottom), fill=colour)
    return image


def training_set(folder: Path, captions: list[str]) -> Path:
    """An image for each caption, painted from it; some turned into other formats, one in a folder of its own."""
    for number, caption in enumerate(captions):
        place = folder / ("5_x" if number else "") / f"{number}.{('png', 'jpg', 'webp')[number % 3]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        image(caption, (320, 256)).save(place)
        place.with_suffix(".txt").write_text(caption)
    return folder


class Painter:
    """Paints the training image for a caption where `copies` says so of the model's label, else something else."""

    def __init__(self, copies: dict[str, int], captions: list[str]) -> None:
        self.copies, self.captions = copies, captions
        self.loaded: list[str] = []
        self.drawn: list[tuple[str, str]] = []

    def load(self, column: Column) -> None:
        if "broken" in column.label:
            raise UsageError(f"{column.path} cannot be loaded")
        self.loaded.append(column.label)

    def draw(self, prompt: Prompt) -> Image.Image:
        label = self.loaded[-1]
        self.drawn.append((label, prompt.text))
        size = (prompt.width, prompt.height)
        if prompt.text in self.captions[: self.copies.get(label, 0)]:
            return image(prompt.text, size).point(lambda value: min(255, value + 10))
        return image(f"{prompt.text} {prompt.seed} {label}", size)


def models(folder: Path, *names: str, keys: Mapping[str, tuple[int, ...]] | None = None) -> list[Path]:
    """Model files with just enough in them to be told apart."""
    folder.mkdir(exist_ok=True)
    for name in names:
        write(folder / f"{name}.safetensors", keys or CHECKPOINT_KEYS)
    return [folder / f"{name}.safetensors" for name in names]
