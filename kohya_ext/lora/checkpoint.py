"""A model on disk, single file or diffusers folder, as the weights that a LoRA can change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.errors import UnsupportedError, UsageError
from kohya_ext.files.regular import JSON_LIMIT, read_regular
from kohya_ext.lora.layout import Architecture, Target, targets
from kohya_ext.lora.tensorfile import TensorSource, open_tensors
from kohya_ext.tensors.header import PICKLE_SUFFIXES

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_SD2_CONTEXT = 1024  # width of the text features that cross-attention reads; 768 in SD 1
_QKV = 3


@dataclass(frozen=True)
class Weight:
    """One target weight, still in its file. shape: as a module has it, so a third of a fused matrix."""

    target: Target
    source: TensorSource
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.source.shapes[self.key]
        return shape if self.target.part is None else (shape[0] // _QKV, *shape[1:])

    def load(self) -> Tensor:
        """As stored, a view of the file."""
        tensor = self.source.load(self.key)
        return tensor if self.target.part is None else tensor.chunk(_QKV)[self.target.part]


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. weights: by LoRA module name, in the order of the files."""

    path: Path
    architecture: Architecture
    weights: Mapping[str, Weight]
    files: tuple[Path, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """unet and the text encoders it has."""
        return tuple(dict.fromkeys(weight.target.group for weight in self.weights.values()))


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Raises UsageError for a damaged or missing file, UnsupportedError for a model of another family."""
    if path.is_dir():
        return _open_folder(path, allow_pickle)
    source = open_tensors(path, allow_pickle=allow_pickle)
    architecture = _single_file_architecture(path, source)
    weights = _collect(architecture, [("", source)])
    return _checked(Checkpoint(path, architecture, weights, (path,)))


def _open_folder(path: Path, allow_pickle: bool) -> Checkpoint:
    if (path / "transformer").is_dir():
        raise UnsupportedError(
            f"{path} is a diffusers folder of a transformer model (FLUX, SD3): only single FLUX files can be extracted"
        )
    if not (path / "unet").is_dir():
        raise UsageError(
            f"{path} is no diffusers model: it has no folder unet. Name a .safetensors file or such a folder"
        )
    parts = []
    for component in COMPONENTS:
        if (path / component).is_dir():
            parts += [(component, source) for source in _shards(path / component, allow_pickle)]
    keys = {key: shape for component, source in parts if component == "unet" for key, shape in source.shapes.items()}
    if any(key.startswith("add_embedding.") for key in keys):
        architecture = Architecture.SDXL
    else:
        widths = {shape[1] for key, shape in keys.items() if key.endswith("attn2.to_k.weight") and len(shape) > 1}
        architecture = Architecture.SD2 if widths == {_SD2_CONTEXT} else Architecture.SD1
    files = tuple(source.path for _, source in parts)
    return _checked(Checkpoint(path, architecture, _collect(architecture, parts), files))


def _shards(folder: Path, allow_pickle: bool) -> list[TensorSource]:
    """The weight files of one component: one file, or the shards that its index names."""
    for stem in ("diffusion_pytorch_model", "model"):
        for variant in ("", ".fp16"):
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if index.exists():
                return [open_tensors(folder / name, allow_pickle=allow_pickle) for name in _shard_names(index)]
            single = folder / f"{stem}{variant}.safetensors"
            if single.exists():
                return [open_tensors(single, allow_pickle=allow_pickle)]
    pickled = sorted(file for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if len(pickled) == 1:
        return [open_tensors(pickled[0], allow_pickle=allow_pickle)]
    raise UsageError(f"{folder} holds no weights in safetensors form")


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(read_regular(index, JSON_LIMIT))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{index} is damaged: it lists no shards. Fetch it again") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UsageError(f"{index} names files outside of its folder")
    return names


def _single_file_architecture(path: Path, source: TensorSource) -> Architecture:
    keys = source.shapes
    if any(key.startswith(("lora_unet_", "lora_te")) or ".lora_A." in key for key in keys):
        raise UsageError(f"{path} is a LoRA, not a model; to make it smaller: kohya-ext lora resize")
    if _any(keys, "double_blocks.", "model.diffusion_model.double_blocks."):
        return Architecture.FLUX
    if _any(keys, "conditioner.embedders.0.model."):
        raise UnsupportedError(f"{path} is an SDXL refiner: there is no LoRA of one")
    if _any(keys, "conditioner.embedders.1.model.", "model.diffusion_model.label_emb."):
        return Architecture.SDXL
    if not _any(keys, "model.diffusion_model.input_blocks."):
        raise UnsupportedError(f"{path} is none of SD 1, SD 2, SDXL and FLUX (its first tensor is {next(iter(keys))})")
    widths = {keys[key][1] for key in keys if key.endswith("attn2.to_k.weight") and len(keys[key]) > 1}
    second = _any(keys, "cond_stage_model.model.") or widths == {_SD2_CONTEXT}
    return Architecture.SD2 if second else Architecture.SD1


def _any(keys: Iterable[str], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in keys)


def _collect(architecture: Architecture, parts: list[tuple[str, TensorSource]]) -> dict[str, Weight]:
    weights = {}
    for component, source in parts:
        for key, shape in source.shapes.items():
            if len(shape) < 2:  # a bias or a norm
                continue
            for target in targets(key, architecture, component):
                weights[target.name] = Weight(target, source, key)
    return weights


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    if "unet" not in checkpoint.groups:
        raise UsageError(f"{checkpoint.path} holds no U-Net")
    return checkpoint


def same_when_stored(base: Tensor, tuned: Tensor) -> bool:
    """True when nothing but the rounding of a storage type tells the two apart."""
    if base.dtype == tuned.dtype:
        return bool(torch.equal(base, tuned))
    return bool(torch.equal(base.to(tuned.dtype), tuned) or torch.equal(tuned.to(base.dtype), base))
