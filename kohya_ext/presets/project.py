"""What a preset leaves open for each training: the images, the model, the output."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.presets.launch_command import DATA_KEYS
from kohya_ext.presets.schema import Tab

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CONCEPT = re.compile(r"\d+_\w+")
MODEL_FILES = (".safetensors", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Project:
    """What a preset leaves open: folders and files, as the user gives them. fields: others, by key, as text."""

    data: Path
    model: str
    output: Path
    name: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def settings(self, tab: Tab) -> dict[str, str]:
        """The fields of the GUI that hold them."""
        output = str(self.output.resolve())
        model = Path(self.model)
        return {
            DATA_KEYS[tab]: str(self.data.resolve()),
            "pretrained_model_name_or_path": str(model.resolve()) if model.exists() else self.model,
            "output_dir": output,
            "output_name": self.name,
            **({"train_dir": output} if tab == "finetune" else {}),
        }

    @property
    def model_is_missing(self) -> bool:
        """Whether the model is named as a file that is not there; a name on a hub may be any other text."""
        return Path(self.model).suffix.lower() in MODEL_FILES and not Path(self.model).exists()

    def images(self, tab: Tab) -> dict[str, list[str]]:
        """Folder -> names in it, for every folder that the GUI looks into. Raises UsageError without an image."""
        top = _names(self.data)
        found = {str(self.data.resolve()): top}
        if tab == "finetune":
            if not _has_image(top):
                deeper = [name for name in top if (self.data / name).is_dir() and _has_image(_names(self.data / name))]
                hint = f"; its folder {deeper[0]} does: name that" if deeper else ""
                raise UsageError(f"{self.data}: contains no image ({', '.join(IMAGE_SUFFIXES)}){hint}")
            return found
        folders = [name for name in top if (self.data / name).is_dir()]
        wrong = [name for name in folders if CONCEPT.match(name) is None]
        if not folders or wrong:
            here = self.data.resolve()
            wrong_name = f"its folder {wrong[0]} is not called" if wrong else "it has no folder called"
            above = (
                f"; did you mean the folder above, {here.parent}?" if CONCEPT.match(here.name) and not folders else ""
            )
            raise UsageError(
                f"{self.data}: {wrong_name} REPEATS_NAME, as in 10_cat: images are expected in such folders{above}"
            )
        for name in folders:
            found[str((self.data / name).resolve())] = _names(self.data / name)
        inside = [name for folder in folders for name in found[str((self.data / folder).resolve())]]
        if not _has_image(inside):
            raise UsageError(f"{self.data}: its folders contain no image ({', '.join(IMAGE_SUFFIXES)})")
        return found


def _has_image(names: Iterable[str]) -> bool:
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names, as the GUI counts them
    except OSError as error:
        raise UsageError(f"{folder}: cannot be listed: {error.strerror or error}") from error
