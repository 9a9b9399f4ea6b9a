"""Which model a file was made from, as its own metadata says. Names of tensors tell too little: families share them.

They tell enough to contradict: `sd_1.5` on FLUX's names is false, and nothing on a page may follow it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kohya_ext.tensors import families as tensors

ARCHITECTURE = "modelspec.architecture"
VERSION, NAME = "ss_base_model_version", "ss_sd_model_name"
LONGEST = 60  # characters of a statement that is shown as it is
_REPOSITORY = re.compile(r"(?!\.)[\w.-]+/(?!.*\.(?:safetensors|ckpt|pt|pth|bin)$)[\w.-]+", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Family:
    """A model that others are made from. name: for people; "" where nothing is stated. base: its repository on Hugging
    Face, "" where the statement fits several. width, height: pixels it was trained at. files: how its files begin.
    models: the families whose tensors it can have, empty where that is not known. shape: the name of all models of that
    shape, of which this is one. task: what it makes as Hugging Face calls it, "" where that is not known.
    """

    name: str = ""
    base: str = ""
    licence: str = ""
    width: int = 0
    height: int = 0
    files: tuple[str, ...] = ()
    models: frozenset[str] = frozenset()
    shape: str = ""
    task: str = ""

    def may_be(self, possible: frozenset[str]) -> bool:
        """Whether tensors of the families `possible` can be of this one; also where nothing is known of either."""
        return not possible or not self.models or bool(possible & self.models)


IMAGES, VIDEOS, ANIMATION = "text-to-image", "text-to-video", "image-to-video"
_DOUBLE = frozenset((tensors.FLUX, tensors.FLUX2, tensors.CHROMA))


def _image(
    name: str, models: str | frozenset[str], base: str = "", licence: str = "", side: int = 0, file: str = "",
    shape: str = "",
) -> Family:  # fmt: skip
    fits = frozenset((models,)) if isinstance(models, str) else models
    return Family(name, base, licence, side, side, (file,) if file else (), fits, shape or name, IMAGES)


def _of(name: str, models: str, task: str = IMAGES) -> Family:
    """A family of which only the statement is shown."""
    return Family(name, models=frozenset((models,)), task=task)


SDXL = _image(
    "SDXL 1.0", tensors.SDXL, "stabilityai/stable-diffusion-xl-base-1.0", "openrail++", 1024, "sd_xl_base_1.0", "SDXL"
)
FLUX = _image(
    "FLUX.1 dev", _DOUBLE, "black-forest-labs/FLUX.1-dev", "other", 1024, "flux1-dev", "FLUX.1"
)  # fmt: skip
SD1 = _image(
    "SD 1.5", tensors.SD1, "stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m", 512, "v1-5-pruned",
    "SD 1",
)  # fmt: skip
UNKNOWN = Family()

# by the start of what is stated, with - for _; the first that fits
_STATED = (
    (("stable-diffusion-xl-v1-refiner",), _image(
        "SDXL refiner 1.0", tensors.REFINER, "stabilityai/stable-diffusion-xl-refiner-1.0", "openrail++", 1024,
        "sd_xl_refiner_1.0", "SDXL refiner")),
    (("stable-diffusion-xl-v1-base", "sdxl-base-v1", "sdxl-1.0", "sdxl-v1"), SDXL),
    (("stable-diffusion-xl", "sdxl"), _image("SDXL", tensors.SDXL, side=1024)),
    (("stable-diffusion-v1-5", "sd-v1-5", "sd-1.5", "sd1.5"), SD1),
    (("stable-diffusion-v1", "sd-v1"), _image("SD 1", tensors.SD1, side=512)),
    (("stable-diffusion-v2-768",), _image("SD 2 (768)", tensors.SD2, side=768)),
    (("stable-diffusion-v2-512",), _image("SD 2 (512)", tensors.SD2, side=512)),
    (("stable-diffusion-v2", "sd-v2"), _image("SD 2", tensors.SD2)),
    (("flux-1-dev", "flux.1-dev"), FLUX),
    (("flux-1-schnell", "flux.1-schnell"), _image(
        "FLUX.1 schnell", _DOUBLE, "black-forest-labs/FLUX.1-schnell", "apache-2.0", 1024, "flux1-schnell", "FLUX.1")),
    (("stable-diffusion-3-5-large", "stable-diffusion-3.5-large"), _image(
        "SD 3.5 large", tensors.SD3, "stabilityai/stable-diffusion-3.5-large", "other", 1024, "sd3.5_large", "SD 3.5")),
    (("stable-diffusion-3-5-medium", "stable-diffusion-3.5-medium"), _image(
        "SD 3.5 medium", tensors.SD3, "stabilityai/stable-diffusion-3.5-medium", "other", 1024, "sd3.5_medium",
        "SD 3.5")),
    (("stable-diffusion-3-m",), _image(
        "SD 3 medium", tensors.SD3, "stabilityai/stable-diffusion-3-medium", "other", 1024, "sd3_medium", "SD 3")),
)  # fmt: skip
# the first that fits of those of which no more is known than whose tensors they have, and what they make
_OTHERS = (
    (("framepack",), _of("", tensors.HUNYUAN_VIDEO, ANIMATION)),
    (("hunyuan-video", "hunyuanvideo", "hunyuan-1.5", "hv-"), _of("", tensors.HUNYUAN_VIDEO, VIDEOS)),
    (("hunyuan-image", "hunyuanimage"), _of("", tensors.HUNYUAN_IMAGE)),
    (("wan", "skyreels-v2"), _of("", tensors.WAN, VIDEOS)),
    (("ltx", "cogvideo", "mochi", "animatediff", "skyreels", "kandinsky-5-video"), Family(task=VIDEOS)),
    (("stable-video-diffusion", "svd"), Family(task=ANIMATION)),
    (("flux-2", "flux2", "flux.2"), _of("", tensors.FLUX2)),
    (("flux",), Family(models=_DOUBLE, task=IMAGES)),
    (("chroma",), _of("", tensors.CHROMA)),
    (("qwen",), _of("", tensors.QWEN)),
    (("lumina", "z-image", "zimage"), _of("", tensors.LUMINA)),
    (("anima",), _of("", tensors.ANIMA)),
    (("stable-diffusion-3", "sd3"), _of("", tensors.SD3)),
    (("pixart",), _of("", tensors.PIXART)),
    (("stable-cascade",), _of("", tensors.CASCADE)),
)
_VIDEO_TENSORS = frozenset((tensors.HUNYUAN_VIDEO, tensors.WAN))
_ANIMATES = re.compile(r"(?:^|[-_. ])i2v|image-to-video")
_MEMBERS = tuple(dict.fromkeys(family for _, family in _STATED if family.files))
# what may follow in the name of a file that is still the same model: how it is stored, and what is packed with it
_STORED = re.compile(
    r"(?:[-_.](?:fp8|fp16|fp32|bf16|int8|e4m3fn|e5m2|scaled|pruned|emaonly|ema|nonema|incl|clips|t5xxl(?:fp8|fp16)?"
    r"|0\.9vae|bnb|nf4|v\d|q\d(?:_[0-9k](?:_[sml])?)?))*(?:\.(?:safetensors|sft|ckpt|gguf|pth?|bin))?"
)
_NAMES = {"flux1": "FLUX.1", "flux-1": "FLUX.1", "stable-diffusion-3": "SD 3", "sd3": "SD 3"}  # as they are stated


def family(metadata: Mapping[str, str]) -> Family:
    """What the metadata states, for a family that is not known here its own words; `UNKNOWN` without a statement.

    A version is that of a shape: where the recorded base model is another one of it, no more than the shape is stated.
    """
    found = _stated(metadata, ARCHITECTURE, VERSION)
    if found.base and recorded_name(metadata) and base(metadata) != found:
        return replace(found, name=found.shape, base="", licence="", files=())
    return found


def _stated(metadata: Mapping[str, str], *keys: str) -> Family:
    for key in keys:
        value = " ".join(metadata.get(key, "").partition("/")[0].split())
        words = value.casefold().replace("_", "-")
        for starts, found in _STATED:
            if words.startswith(starts):
                return found
        if value:
            known = next((found for starts, found in _OTHERS if words.startswith(starts)), UNKNOWN)
            task = ANIMATION if known.task == VIDEOS and _ANIMATES.search(words) else known.task
            return replace(known, name=_NAMES.get(words, value[:LONGEST]), task=task)
    return UNKNOWN


def task(stated: Family, possible: frozenset[str]) -> str:
    """What a model makes, as Hugging Face calls it.

    Args:
        stated: what the file states, `UNKNOWN` where its tensors contradict it.
        possible: the families whose tensors it can have.

    Returns:
        "" where that is not known: of an unknown word, and of tensors that models of videos have as well.
    """
    if stated.task or stated.name:
        return stated.task
    if possible & _VIDEO_TENSORS:
        return VIDEOS if possible <= _VIDEO_TENSORS else ""
    return IMAGES


def base(metadata: Mapping[str, str]) -> Family:
    """The very model that the file was made from, with its repository; `UNKNOWN` where that is not stated.

    The recorded name alone tells it. A version or an architecture is not a base model: sd-scripts writes
    `sdxl_base_v1-0` for every model of SDXL's shape, ai-toolkit `sd_1.5` for families that it has no word for.
    """
    name = recorded_name(metadata)
    if _REPOSITORY.fullmatch(name):
        return next((one for one in _MEMBERS if one.base == name), Family(name, name))
    file = re.split(r"[\\/]", name)[-1].casefold()
    return next((one for one in _MEMBERS if any(_is_file_of(file, start) for start in one.files)), UNKNOWN)


def _is_file_of(file: str, start: str) -> bool:
    """Whether `file` is the model whose files begin with `start`, and no other made from that (a turbo)."""
    return file.startswith(start) and _STORED.fullmatch(file, len(start)) is not None


def recorded_name(metadata: Mapping[str, str]) -> str:
    """The base model as the training was given it: a file's name, a path or a repository; "" without one."""
    name = metadata.get(NAME, "").strip().rstrip("\\/")
    return "" if name == "None" else name
