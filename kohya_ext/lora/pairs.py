"""The factor pairs of a LoRA file, by whichever names they go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kohya_ext.errors import UnsupportedError, UsageError
from kohya_ext.files.regular import read_text
from kohya_ext.lora.assemble import Keys
from kohya_ext.lora.tensorfile import TensorSource

# (down, up) as the last or last but one part of a key: sd-scripts, PEFT, ControlLoRA and diffusers of old
NAMES = (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("down", "up"))
ADAPTER_METADATA = "lora_adapter_metadata"
ADAPTER_CONFIG = "adapter_config.json"
_FOREIGN = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "lora_mid": "LoCon with a core tensor", "boft_": "BOFT"}


@dataclass(frozen=True)
class Pair:
    """One module. scale: what its product is multiplied with when used; 1 where the file says nothing.

    shape: of the weight, (out, in) or (out, in, kernel, kernel).
    """

    name: str
    keys: Keys
    source: TensorSource
    scale: float

    @property
    def rank(self) -> int:
        return self.source.shapes[self.keys.down][0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.source.shapes[self.keys.up][0], *self.source.shapes[self.keys.down][1:])

    def load(self) -> tuple[Tensor, Tensor]:
        """(up, down) as matrices (out, rank) and (rank, in * kernel), as stored."""
        return self.source.load(self.keys.up).flatten(1), self.source.load(self.keys.down).flatten(1)


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA. others: keys of tensors that belong to no pair. peft_scale: a scale the file itself does not tell
    loaders by tensors (PEFT keeps lora_alpha in a configuration); None when there is none."""

    source: TensorSource
    pairs: tuple[Pair, ...]
    others: tuple[str, ...]
    peft_scale: float | None


def read_pairs(source: TensorSource) -> LoraFile:
    """Raises UsageError when the file is no LoRA or damaged, UnsupportedError for other kinds of adapters."""
    for key in source.shapes:
        for mark, kind in _FOREIGN.items():
            if mark in key:
                raise UnsupportedError(f"{source.path} is a {kind} ({key}): only plain LoRA can be resized")
    peft_scale = _peft_scale(source)
    used: set[str] = set()
    pairs = []
    for key in source.shapes:
        keys = _keys(key, source)
        if keys is None:
            continue
        name, names = keys
        _check(name, names, source)
        pairs.append(Pair(name, names, source, _scale(names, source, peft_scale)))
        used |= {names.up, names.down, names.alpha or ""}
    if not pairs:
        raise UsageError(f"{source.path} holds no LoRA: no key with lora_down / lora_up or lora_A / lora_B")
    others = tuple(key for key in source.shapes if key not in used)
    return LoraFile(source, tuple(pairs), others, peft_scale)


def _keys(key: str, source: TensorSource) -> tuple[str, Keys] | None:
    """(module, keys) when `key` is the down factor of a module."""
    parts = key.split(".")
    for down, up in NAMES:
        for place in (-1, -2, -3):  # -3: PEFT's own files carry the adapter's name, lora_A.default.weight
            if len(parts) < -place + 1 or parts[place] != down or (place == -3 and down != "lora_A"):
                continue
            other = list(parts)
            other[place] = up
            module = ".".join(parts[:place])
            alpha = f"{module}.alpha" if f"{module}.alpha" in source.shapes else None
            return module, Keys(".".join(other), key, alpha)
    return None


def _scale(keys: Keys, source: TensorSource, peft_scale: float | None) -> float:
    if keys.alpha is not None:
        return float(source.load(keys.alpha).float().reshape(-1)[0]) / source.shapes[keys.down][0]
    return 1.0 if peft_scale is None else peft_scale


def _check(name: str, keys: Keys, source: TensorSource) -> None:
    shapes, path = source.shapes, source.path
    if keys.up not in shapes:
        raise UsageError(f"{path} is damaged: {keys.down} is there, {keys.up} is not")
    up, down = shapes[keys.up], shapes[keys.down]
    if len(up) < 2 or len(down) < 2 or up[1] != down[0] or any(length != 1 for length in up[2:]):
        raise UsageError(f"{path}: the factors of {name} do not fit together ({list(up)} and {list(down)})")
    if not down[0]:
        raise UsageError(f"{path}: {name} has rank 0")


def _peft_scale(source: TensorSource) -> float | None:
    """lora_alpha / r of a PEFT file, from its metadata or from the configuration beside it."""
    found: Mapping[str, object] | None = None
    if ADAPTER_METADATA in source.metadata:
        found = _json(source.metadata[ADAPTER_METADATA], source.path)
    elif source.path.name.startswith("adapter_model") and (source.path.parent / ADAPTER_CONFIG).exists():
        beside = source.path.parent / ADAPTER_CONFIG
        found = _json(read_text(beside), beside)
    if found is None:
        return None
    flat = {key.rsplit(".", 1)[-1]: value for key, value in found.items()}
    if flat.get("alpha_pattern") or flat.get("rank_pattern") or flat.get("use_rslora") or flat.get("use_dora"):
        raise UnsupportedError(f"{source.path}: PEFT patterns, rsLoRA and DoRA are not supported")
    alpha, rank = flat.get("lora_alpha"), flat.get("r")
    if not isinstance(alpha, int | float) or not isinstance(rank, int) or rank < 1:
        return None
    return alpha / rank


def _json(text: str, path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: its adapter configuration is no JSON") from error
    return found if isinstance(found, dict) else {}
