"""Which training image an image looks like, and how much: a near copy is what overtraining looks like.

The perceptual hash sees composition: the same image again, resized, recoloured or redrawn. CLIP sees content; two
images of one subject are alike to it, so its limit is high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kohya_ext.core.errors import UsageError
from kohya_ext.core.shell import pip_install

BITS = 64
NEAR_BITS = 10  # of 64; unrelated images differ in 32, with a standard deviation of about 4
NEAR_COSINE = 0.95
CLIP_MODEL = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Nearest:
    """The training image that is nearest. path: relative to the data set. text: how near. copy: too near."""

    path: str
    likeness: float
    text: str
    copy: bool


class Likeness(Protocol):
    """A way to compare images."""

    name: str

    def features(self, image: Any) -> Any:
        """What is compared, of a PIL image."""

    def likeness(self, one: Any, other: Any) -> float:
        """1 for the same."""


class Measure(Likeness, Protocol):
    """A way to compare images that knows near copies."""

    def told(self, likeness: float) -> tuple[str, bool]:
        """How it is said, and whether it is a near copy."""


class Hash:
    """The perceptual hash of the library imagehash. Raises UsageError when that is missing."""

    name = "perceptual hash"

    def __init__(self) -> None:
        try:
            import imagehash
        except ImportError as error:
            raise UsageError(f"--images needs the package imagehash: {pip_install('imagehash')}") from error
        self._phash = imagehash.phash

    def features(self, image: Any) -> int:
        """Its perceptual hash."""
        return int(str(self._phash(image.convert("RGB"))), 16)

    def likeness(self, one: int, other: int) -> float:
        """The share of bits in which they agree."""
        return 1 - bin(one ^ other).count("1") / BITS

    def told(self, likeness: float) -> tuple[str, bool]:
        """In bits; a near copy has few that differ."""
        differing = round((1 - likeness) * BITS)
        return f"{differing} of {BITS} bits differ", differing <= NEAR_BITS


class Clip:
    """Cosine of CLIP's image features. model: a folder, or a name that is in the local cache; nothing is fetched."""

    name = "CLIP"

    def __init__(self, model: str = CLIP_MODEL) -> None:
        try:
            import torch
            from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

            self._torch = torch
            self._processor = CLIPImageProcessor.from_pretrained(model, local_files_only=True)
            self._model = CLIPVisionModelWithProjection.from_pretrained(model, local_files_only=True).eval()
        except (ImportError, OSError, ValueError) as error:
            raise UsageError(
                f"CLIP ({model}) is not on this machine: omit --clip (the perceptual hash needs no model), or "
                "give a folder that contains it"
            ) from error

    def features(self, image: Any) -> Any:
        """Its unit vector."""
        pixels = self._processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        with self._torch.no_grad():
            found = self._model(pixels).image_embeds[0].double()
        return found / found.norm()

    def likeness(self, one: Any, other: Any) -> float:
        """The cosine of two unit vectors."""
        return float(one @ other)

    def told(self, likeness: float) -> tuple[str, bool]:
        """The cosine; a near copy has a high one."""
        return f"cosine {likeness:.3f}", likeness >= NEAR_COSINE


class TrainingImages:
    """The features of a data set, read once; images that cannot be read are skipped and named in `unreadable`."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[Path],
        measure: Measure,
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        from kohya_ext.files.image import decoding, opened

        self.folder, self.measure = folder, measure
        self.unreadable: list[str] = []
        self._features: list[tuple[str, Any]] = []
        for done, name in enumerate(names, 1):
            try:
                with opened(folder / name) as image, decoding(image, reduced_to=512):
                    self._features.append((name.as_posix(), measure.features(image)))
            except Exception:  # decoders raise what they like on broken input; `audit` says what is wrong
                self.unreadable.append(name.as_posix())
            progress("training images", done, len(names))
        if not self._features:
            raise UsageError(f"{folder} has no image that can be read")

    def nearest(self, image: Any) -> Nearest:
        """The most similar training image to a PIL image."""
        features = self.measure.features(image)
        path, likeness = max(
            ((path, self.measure.likeness(features, known)) for path, known in self._features),
            key=lambda found: found[1],
        )
        text, copy = self.measure.told(likeness)
        return Nearest(path, likeness, text, copy)
