"""A model on disk, single file or diffusers folder, as the weights that a LoRA can change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.core.errors import KohyaExtError, UsageError
from kohya_ext.files.regular import JSON_LIMIT, read_regular
from kohya_ext.lora import quantised, rest
from kohya_ext.lora.layout import Architecture, Target, architecture_of_file, architecture_of_unet, targets
from kohya_ext.tensors.header import PICKLE_SUFFIXES
from kohya_ext.tensors.tensorfile import TensorSource, open_tensors

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_QKV = 3
MARKS = ("v_pred", "ztsnr")  # empty tensors by which a model says that it predicts v, and that its noise has no signal


@dataclass(frozen=True)
class Weight:
    """One target weight, still in its file. shape: as a module has it, so a third of a fused matrix.

    more: the tensors that stacked below the first make the weight, where the model keeps it in pieces.
    """

    target: Target
    source: TensorSource
    key: str
    more: tuple[tuple[TensorSource, str], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole weight: of one third of a fused matrix, of all stacked tensors together."""
        shape = self.source.shapes[self.key]
        if not self.more and self.target.part is None:
            return shape
        height = shape[0] + sum(source.shapes[key][0] for source, key in self.more)
        return (height if self.target.part is None else height // _QKV, *shape[1:])

    def load(self) -> Tensor:
        """As stored, a view of the file where the weight is one tensor of it."""
        tensor = self.source.load(self.key)
        if self.more:
            tensor = torch.cat([tensor, *(source.load(key) for source, key in self.more)])
        return tensor if self.target.part is None else tensor.chunk(_QKV)[self.target.part]

    def is_rounding_of(self, other: Tensor) -> bool:
        """Whether the weight is `other` quantised as this file is."""
        whole = not self.more and self.target.part is None and isinstance(self.source, quantised.Dequantised)
        return whole and self.source.rounded_to(self.key, other)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. weights: by LoRA module name, in the order of the files. marks: see MARKS.

    rest: all other weights, by `rest.rest_name`.
    """

    path: Path
    architecture: Architecture
    weights: Mapping[str, Weight]
    files: tuple[Path, ...]
    marks: frozenset[str] = frozenset()
    rest: Mapping[str, Weight] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """U-Net and the text encoders it has."""
        return tuple(dict.fromkeys(weight.target.group for weight in self.weights.values()))

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """The files as they are read, each once."""
        return tuple({id(weight.source): weight.source for weight in self.weights.values()}.values())

    @property
    def quantised(self) -> str:
        """What its weights are stored as, where that is not plain numbers."""
        kinds = [source.kinds for source in self.sources if isinstance(source, quantised.Dequantised)]
        return ", ".join(f"{count} weights in {kind}" for found in kinds for kind, count in found.items())


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Raises UsageError for a damaged or missing file, UnsupportedError for a model of another family."""
    if path.is_dir():
        return _open_folder(path, allow_pickle)
    source = quantised.of(open_tensors(path, allow_pickle=allow_pickle))
    architecture = architecture_of_file(path, source.shapes)
    parts = [("", source)]
    marks = frozenset(MARKS) & source.shapes.keys()
    weights, others = _collect(architecture, parts), _rest(architecture, parts)
    return _checked(Checkpoint(path, architecture, weights, (path,), marks, others))


def _open_folder(path: Path, allow_pickle: bool) -> Checkpoint:
    if not (path / "unet").is_dir():
        return _open_network(path, allow_pickle)
    parts = []
    for component in COMPONENTS:
        if (path / component).is_dir():
            parts += [(component, source) for source in _shards(path / component, allow_pickle)]
    keys = {key: shape for component, source in parts if component == "unet" for key, shape in source.shapes.items()}
    architecture = architecture_of_unet(path, keys)
    files = tuple(source.path for _, source in parts)
    others = _rest(architecture, [*parts, *_vae(path, allow_pickle)])
    return _checked(Checkpoint(path, architecture, _collect(architecture, parts), files, rest=others))


def _open_network(path: Path, allow_pickle: bool) -> Checkpoint:
    """The transformer of a diffusers folder, or a folder with nothing but one network, in one file or in shards.

    The text encoders next to a transformer are read where they are: single files have none of them.
    """
    folder = path / "transformer"
    if not folder.is_dir():
        folder = path
        if not _has_weights(path):
            raise UsageError(
                f"{path} is not a diffusers model: it has no folder unet or transformer, and no weights under "
                "diffusers' names. Name a .safetensors file or such a folder"
            )
    parts = [("", source) for source in _shards(folder, allow_pickle)]
    for component in COMPONENTS[1:]:
        if folder != path and _has_weights(path / component):
            parts += [(component, source) for source in _shards(path / component, allow_pickle)]
    shapes = {key: shape for component, source in parts if not component for key, shape in source.shapes.items()}
    architecture = architecture_of_file(path, shapes)
    files = tuple(source.path for _, source in parts)
    weights, others = _collect(architecture, parts), _rest(architecture, parts)
    return _checked(Checkpoint(path, architecture, weights, files, rest=others))


def _vae(path: Path, allow_pickle: bool) -> list[tuple[str, TensorSource]]:
    """The VAE of a folder. No LoRA needs it: one that is missing or unreadable is not compared."""
    try:
        return [(rest.VAE_FOLDER, source) for source in _shards(path / rest.VAE_FOLDER, allow_pickle)]
    except KohyaExtError:
        return []


def _shards(folder: Path, allow_pickle: bool) -> list[TensorSource]:
    """The weight files of one component: one file, or the shards that its index names."""
    for index, single in _places(folder):
        if index.exists():
            shards = [open_tensors(folder / name, allow_pickle=allow_pickle) for name in _shard_names(index)]
            for shard in shards:
                if key := quantised.scale_alone(shard):
                    raise UsageError(
                        f"{shard.path}: {key} is in another shard than its weight: join the shards into one file first"
                    )
            return [quantised.of(shard) for shard in shards]
        if single.exists():
            return [quantised.of(open_tensors(single, allow_pickle=allow_pickle))]
    pickled = sorted(file for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if len(pickled) == 1:
        return [quantised.of(open_tensors(pickled[0], allow_pickle=allow_pickle))]
    raise UsageError(f"{folder} contains no weights in safetensors format")


def _has_weights(folder: Path) -> bool:
    return any(found.exists() for pair in _places(folder) for found in pair)


def _places(folder: Path) -> list[tuple[Path, Path]]:
    """(index of shards, single file): where diffusers and transformers look for weights, the first that exists."""
    return [
        (folder / f"{stem}.safetensors.index{variant}.json", folder / f"{stem}{variant}.safetensors")
        for stem in ("diffusion_pytorch_model", "model")
        for variant in ("", ".fp16")
    ]


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(read_regular(index, JSON_LIMIT))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{index} is damaged: it lists no shards. Download it again") from error
    if not names:
        raise UsageError(f"{index} is damaged: it lists no shards. Download it again")
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UsageError(f"{index} lists files outside of its folder")
    return names


def _collect(architecture: Architecture, parts: list[tuple[str, TensorSource]]) -> dict[str, Weight]:
    found: dict[str, dict[int, tuple[Target, TensorSource, str]]] = {}
    for component, source in parts:
        for key, shape in source.shapes.items():
            if len(shape) < 2:  # a bias or a norm
                continue
            for target in targets(key, architecture, component):
                found.setdefault(target.name, {})[target.piece] = (target, source, key)
    weights = {}
    for name, pieces in found.items():
        target, source, key = pieces[min(pieces)]
        if len(pieces) < target.pieces:
            raise UsageError(f"{source.path} is damaged: {key} is present, the other parts of {name} are missing")
        more = tuple((pieces[place][1], pieces[place][2]) for place in sorted(pieces)[1:])
        weights[name] = Weight(target, source, key, more)
    return weights


def _rest(architecture: Architecture, parts: list[tuple[str, TensorSource]]) -> dict[str, Weight]:
    """What `_collect` leaves."""
    found = {}
    for component, source in parts:
        for key, shape in source.shapes.items():
            if len(shape) > 1 and component != rest.VAE_FOLDER and targets(key, architecture, component):
                continue
            if name := rest.rest_name(key, architecture, component):
                found[name] = Weight(Target(rest.GROUP, name), source, key)
    return found


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    if "unet" not in checkpoint.groups:
        raise UsageError(f"{checkpoint.path} contains no U-Net")
    return checkpoint


def only_rounding(base: Weight, tuned: Weight, before: Tensor, after: Tensor) -> bool:
    """Whether nothing but how they are stored tells two weights apart. before, after: what is loaded of them."""
    return same_when_stored(before, after) or tuned.is_rounding_of(before) or base.is_rounding_of(after)


_SAMPLE = 4096  # elements that are compared before all of them are


def same_when_stored(base: Tensor, tuned: Tensor) -> bool:
    """True when nothing but the rounding of storage types tells the two apart: both become equal on the way through."""
    if base.dtype == tuned.dtype and torch.equal(base, tuned):
        return True
    first, second = base.reshape(-1)[:_SAMPLE], tuned.reshape(-1)[:_SAMPLE]
    return any(
        torch.equal(_through(first, way), _through(second, way))
        and torch.equal(_through(base, way), _through(tuned, way))
        for way in _ways(base.dtype, tuned.dtype)
    )


def _ways(base: torch.dtype, tuned: torch.dtype) -> list[tuple[torch.dtype, ...]]:
    half, brain = torch.float16, torch.bfloat16
    direct: list[tuple[torch.dtype, ...]] = [] if base == tuned else [(tuned,), (base,)]
    return [*direct, (half,), (brain,), (brain, half), (half, brain)]


def _through(tensor: Tensor, types: tuple[torch.dtype, ...]) -> Tensor:
    for dtype in types:
        tensor = tensor.to(dtype)
    return tensor
