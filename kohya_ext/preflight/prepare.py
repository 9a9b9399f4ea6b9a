"""A command made ready for a preflight: outputs into a temporary folder, stand-ins for what is not available."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_ext.files.mirror import mirrored
from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.preflight.stand_ins import (
    HALF,
    dtype_of,
    family_of,
    part_of,
    write_images,
    write_metadata,
    write_model,
)
from kohya_ext.presets.toml_document import dump_toml
from kohya_ext.spec.preflight import (
    CONFIG_ARGUMENT,
    DATA_ARGUMENTS,
    DROPPED_ARGUMENTS,
    METADATA_ARGUMENT,
    MODEL_ARGUMENTS,
    OUTPUT_ARGUMENTS,
)
from kohya_ext.tensors.families import refuse_refiner

MAIN_MODEL = "pretrained_model_name_or_path"
PROMPTS = "sample_prompts"
OUTPUT_FOLDER = "output_dir"
SAMPLE_TIMES = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")


@dataclass
class Workplace:
    """The temporary folder of one preflight, and what was put into it.

    unknown_models: stand-ins whose shapes nobody knows. notes: what is in the place of something else.
    own_images: whether the images are stand-ins. mirrors: mirror of a folder of images -> the folder.
    """

    folder: Path
    unknown_models: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    own_images: bool = False
    mirrors: dict[str, str] = field(default_factory=dict)
    _images: dict[bool, Path] = field(default_factory=dict)

    def images(self, *, in_concept: bool) -> Path:
        """The folder of stand-in images, made when it is first asked for."""
        if in_concept not in self._images:
            place = self.folder / ("concepts" if in_concept else "images")
            self._images[in_concept] = write_images(place, in_concept=in_concept)
        return self._images[in_concept]

    def mirror(self, folder: Path) -> Path:
        """A mirror of a folder of images. Raises OSError where it cannot be listed."""
        mirror = mirrored(folder, self.folder)
        self.mirrors[str(mirror)] = str(folder.resolve())
        return mirror

    def by_their_names(self, text: str) -> str:
        """A message with the user's own folders in the place of their mirrors."""
        for mirror, folder in self.mirrors.items():
            text = text.replace(mirror, folder).replace(str(Path(mirror).parent), str(Path(folder).parent))
        return text

    def model(self, name: str, family: str | None, dtype: str = HALF) -> str:
        """A stand-in for a model file."""
        file = self.folder / "models" / f"{name}.safetensors"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            write_model(file, family, dtype)
            if family is None:
                self.unknown_models.append(str(file))
        return str(file)

    def output(self, name: str) -> str:
        """A folder for what a run writes."""
        place = self.folder / "output" / name
        place.mkdir(parents=True, exist_ok=True)
        return str(place)


def prepare(command: ScriptCommand, place: Workplace) -> None:
    """Change the arguments of a training command in place.

    Args:
        command: as the user's settings have it.
        place: gets the stand-ins that are needed.
    """
    for name in DROPPED_ARGUMENTS:
        command.drop(name)
    for name in OUTPUT_ARGUMENTS:
        if isinstance(command.value(name), str) and not _inside(command.value(name), place):
            command.change(name, place.output(name))
    for name, value in _texts(command, MODEL_ARGUMENTS):
        if name == MAIN_MODEL:
            refuse_refiner(Path(value))
        if not Path(value).exists():
            v2 = bool(command.value("v2"))
            family = (
                family_of(command.script, v2=v2, model=value) if name == MAIN_MODEL else part_of(command.script, name)
            )
            command.change(name, place.model(name, family, dtype_of(value)))
            place.notes.append(f"--{name} {value} is not available: a file with only the shapes is used instead")
    for name in ("network_weights", "base_weights"):
        if isinstance(value := command.value(name), str) and not Path(value).exists():
            command.drop(name)
            place.notes.append(f"--{name} {value} is not available: the run starts without it")
    _one_sample(command, place)
    _data(command, place)
    if command.settings:
        file = place.folder / "settings.toml"
        file.write_text(dump_toml(command.settings), encoding="utf-8")
        command.change(CONFIG_ARGUMENT, str(file))


def _texts(command: ScriptCommand, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        value: Any = command.value(name)
        if isinstance(value, str) and value:
            yield name, value


def _inside(value: str, place: Workplace) -> bool:
    return Path(value).is_relative_to(place.folder)


def _one_sample(command: ScriptCommand, place: Workplace) -> None:
    """One sample image of the largest size and one step takes the memory of all of them."""
    prompts = command.value(PROMPTS)
    if not isinstance(prompts, str) or not any(command.value(name) for name in SAMPLE_TIMES):
        return
    readable = prompts.endswith(".txt")
    try:
        text = Path(prompts).read_text(encoding="utf-8") if readable else ""
    except (OSError, ValueError):
        text, readable = "", False
    if not text.strip():
        for name in (PROMPTS, *SAMPLE_TIMES):
            command.drop(name)
        reason = "is empty" if readable else "is not a text file that can be read"
        place.notes.append(f"--{PROMPTS} {prompts} {reason}: sample images are not counted")
        return
    sizes = {side: max(map(int, re.findall(rf"--{side} (\d+)", text)), default=0) for side in ("w", "h")}
    file = place.folder / "prompts.txt"
    words = [f"--{side} {size}" for side, size in sizes.items() if size]
    file.write_text(" ".join(["an image", *words, "--s 1"]) + "\n", encoding="utf-8")
    command.change(PROMPTS, str(file))


def _data(command: ScriptCommand, place: Workplace) -> None:
    """Images are read through links, since caches are written next to them."""
    metadata = command.value(METADATA_ARGUMENT)
    missing = isinstance(metadata, str) and not Path(metadata).exists()
    if missing and not _inside(str(metadata), place):
        file = place.folder / "metadata.json"
        write_metadata(file)
        command.change(METADATA_ARGUMENT, str(file))
        place.notes.append(f"--{METADATA_ARGUMENT} {metadata} is not available: that of generated images is used")
    for name, value in _texts(command, DATA_ARGUMENTS):
        if _inside(value, place):
            continue
        if Path(value).is_dir() and not (missing and name == DATA_ARGUMENTS[0]):
            command.change(name, str(place.mirror(Path(value))))
        elif name == DATA_ARGUMENTS[0]:
            command.change(name, str(place.images(in_concept=not metadata)))
            place.own_images = True
            place.notes.append(f"--{name} {value} is not available: generated images are used instead")
        else:
            command.drop(name)
            place.notes.append(f"--{name} {value} is not available: the run continues without it")
