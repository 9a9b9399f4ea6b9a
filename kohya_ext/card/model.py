"""What a model file is, judged by its header alone: nothing of its weights is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.tensors import adapters
from kohya_ext.tensors.header import BITS, Header, is_pickle, read_header

MODELSPEC = "modelspec."
DTYPE_NAMES = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "F4": "fp4",
}
CHECKPOINT, LORA, EMBEDDING = "checkpoint", "LoRA", "embedding"


@dataclass(frozen=True)
class Family:
    """A model family. base: its repository on Hugging Face. width, height: pixels it was trained at."""

    name: str
    base: str
    licence: str
    width: int
    height: int


SDXL = Family("SDXL 1.0", "stabilityai/stable-diffusion-xl-base-1.0", "openrail++", 1024, 1024)
SD1 = Family("SD 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m", 512, 512)
SD2 = Family("SD 2.1", "stabilityai/stable-diffusion-2-1", "openrail++", 768, 768)
FLUX = Family("FLUX.1 dev", "black-forest-labs/FLUX.1-dev", "other", 1024, 1024)
SD3 = Family("SD 3", "stabilityai/stable-diffusion-3-medium", "other", 1024, 1024)
UNKNOWN = Family("", "", "", 0, 0)

# by the start of modelspec.architecture and of ss_base_model_version
_STATED = (
    ("stable-diffusion-xl", SDXL), ("sdxl", SDXL), ("stable-diffusion-v1", SD1), ("sd_v1", SD1),
    ("stable-diffusion-v2", SD2), ("sd_v2", SD2), ("flux-1-dev", FLUX), ("flux1", FLUX),
    ("stable-diffusion-3", SD3), ("sd3", SD3),
)  # fmt: skip
# by keys that only this family has, of checkpoints and of LoRAs
_SIGNS = (
    ("conditioner.embedders.1.", SDXL), ("lora_te2_", SDXL), ("cond_stage_model.transformer.", SD1),
    ("cond_stage_model.model.", SD2), ("double_blocks.0.", FLUX), ("lora_unet_double_blocks_", FLUX),
    ("joint_blocks.0.", SD3),
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model file. weights: how many numbers it holds; size: of the file in bytes; sha256: "" where not asked for."""

    path: Path
    kind: str
    family: Family
    metadata: Mapping[str, str]
    weights: int
    dtype: str
    size: int
    sha256: str = ""

    def spec(self, name: str) -> str:
        """A field of the modelspec, "" where there is none."""
        return self.metadata.get(MODELSPEC + name, "").strip()


def read(path: Path) -> Model:
    """The model at `path`. Raises UsageError for everything but a whole safetensors file."""
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a card is made from one .safetensors file")
    if is_pickle(path):
        raise UsageError(
            f"{path} is a pickle (.ckpt), which can run code and is not opened; convert it to .safetensors"
        )
    header = read_header(path)
    dtypes: Counter[str] = Counter()
    for entry in header.entries.values():
        dtypes[entry.dtype] += math.prod(entry.shape)
    floats = {name: count for name, count in dtypes.items() if name in DTYPE_NAMES} or dict(dtypes)
    main = max(floats, key=lambda name: floats[name] * BITS[name])
    kind = _kind(header)
    return Model(
        path, kind, _family(header), header.metadata, dtypes.total(), DTYPE_NAMES.get(main, main.lower()), header.size
    )


def _kind(header: Header) -> str:
    stated = header.metadata.get(MODELSPEC + "architecture", "")
    if stated.endswith("/lora") or "ss_network_module" in header.metadata:
        return LORA
    if stated.endswith("/textual-inversion"):
        return EMBEDDING
    if adapters.kinds(header.entries):
        return LORA
    return EMBEDDING if set(header.entries) <= {"emb_params", "clip_l", "clip_g"} else CHECKPOINT


def _family(header: Header) -> Family:
    for stated in (MODELSPEC + "architecture", "ss_base_model_version"):
        value = header.metadata.get(stated, "").lower()
        for start, family in _STATED:
            if value.startswith(start):
                return family
        if value:  # it says what it is, and that is none of ours: names of tensors must not make it one of them
            return UNKNOWN
    for sign, family in _SIGNS:
        if any(sign in key for key in header.entries):
            return family
    return UNKNOWN
