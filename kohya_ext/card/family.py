"""Which model a file was made from, as its own metadata says. Names of tensors tell too little: families share them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ARCHITECTURE = "modelspec.architecture"
VERSION, NAME = "ss_base_model_version", "ss_sd_model_name"
LONGEST = 60  # characters of a statement that is shown as it is
_REPOSITORY = re.compile(r"(?!\.)[\w.-]+/(?!.*\.(?:safetensors|ckpt|pt|pth|bin)$)[\w.-]+", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Family:
    """A model that others are made from. name: for people; "" where nothing is stated. base: its repository on Hugging
    Face, "" where the statement fits several. width, height: pixels it was trained at. files: how its files begin.
    """

    name: str = ""
    base: str = ""
    licence: str = ""
    width: int = 0
    height: int = 0
    files: tuple[str, ...] = ()


SDXL = Family(
    "SDXL 1.0", "stabilityai/stable-diffusion-xl-base-1.0", "openrail++", 1024, 1024, ("sd_xl_base_1.0",)
)  # fmt: skip
FLUX = Family("FLUX.1 dev", "black-forest-labs/FLUX.1-dev", "other", 1024, 1024, ("flux1-dev",))
SD1 = Family(
    "SD 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m", 512, 512, ("v1-5-pruned",)
)  # fmt: skip
UNKNOWN = Family()

# by the start of what is stated; the first that fits
_STATED = (
    (("stable-diffusion-xl-v1-refiner",), Family(
        "SDXL refiner 1.0", "stabilityai/stable-diffusion-xl-refiner-1.0", "openrail++", 1024, 1024,
        ("sd_xl_refiner_1.0",))),
    (("stable-diffusion-xl-v1-base", "sdxl_base_v1", "sdxl_1.0", "sdxl_v1"), SDXL),
    (("stable-diffusion-xl", "sdxl"), Family("SDXL", width=1024, height=1024)),
    (("stable-diffusion-v1-5", "sd_v1-5", "sd_1.5", "sd1.5"), SD1),
    (("stable-diffusion-v1", "sd_v1"), Family("SD 1", width=512, height=512)),
    (("stable-diffusion-v2-768",), Family("SD 2 (768)", width=768, height=768)),
    (("stable-diffusion-v2-512",), Family("SD 2 (512)", width=512, height=512)),
    (("stable-diffusion-v2", "sd_v2"), Family("SD 2")),
    (("flux-1-dev", "flux.1-dev"), FLUX),
    (("flux-1-schnell", "flux.1-schnell"), Family(
        "FLUX.1 schnell", "black-forest-labs/FLUX.1-schnell", "apache-2.0", 1024, 1024, ("flux1-schnell",))),
    (("stable-diffusion-3-5-large", "stable-diffusion-3.5-large"), Family(
        "SD 3.5 large", "stabilityai/stable-diffusion-3.5-large", "other", 1024, 1024, ("sd3.5_large",))),
    (("stable-diffusion-3-5-medium", "stable-diffusion-3.5-medium"), Family(
        "SD 3.5 medium", "stabilityai/stable-diffusion-3.5-medium", "other", 1024, 1024, ("sd3.5_medium",))),
    (("stable-diffusion-3-m",), Family(
        "SD 3 medium", "stabilityai/stable-diffusion-3-medium", "other", 1024, 1024, ("sd3_medium",))),
)  # fmt: skip
_MEMBERS = tuple(dict.fromkeys(family for _, family in _STATED if family.files))
# what may follow in the name of a file that is still the same model: how it is stored, and what is packed with it
_STORED = re.compile(
    r"(?:[-_.](?:fp8|fp16|fp32|bf16|int8|e4m3fn|e5m2|scaled|pruned|emaonly|ema|nonema|incl|clips|t5xxl(?:fp8|fp16)?"
    r"|0\.9vae|bnb|nf4|v\d|q\d(?:_[0-9k](?:_[sml])?)?))*(?:\.(?:safetensors|sft|ckpt|gguf|pth?|bin))?"
)
_NAMES = {"flux1": "FLUX.1", "flux-1": "FLUX.1", "stable-diffusion-3": "SD 3", "sd3": "SD 3"}


def family(metadata: Mapping[str, str]) -> Family:
    """What the metadata states, for a family that is not known here its own words; `UNKNOWN` without a statement."""
    return _stated(metadata, ARCHITECTURE, VERSION)


def _stated(metadata: Mapping[str, str], *keys: str) -> Family:
    for key in keys:
        value = " ".join(metadata.get(key, "").partition("/")[0].split())
        for starts, found in _STATED:
            if value.casefold().startswith(starts):
                return found
        if value:
            return Family(_NAMES.get(value.casefold(), value[:LONGEST]))
    return UNKNOWN


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
