"""From spooled factors to LoRA files, module by module: one at a time in memory, and a file whole or not at all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from kohya_ext.core.errors import UsageError
from kohya_ext.files.atomic import NEW_FILE_MODE, replacing
from kohya_ext.files.disk import explained_target
from kohya_ext.lora.factor_store import Spool, StoredModule
from kohya_ext.tensors.header import encode
from kohya_ext.tensors.streaming import entries_of

MODEL_HASH = "sshs_model_hash"
LEGACY_HASH = "sshs_legacy_hash"
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000  # what old web UIs hash of a file
_DIGEST, _SHORT = 64, 8

Progress = Callable[[int, int, str], None]
"""Called with modules done, modules in total, and the name of the last one."""


@dataclass(frozen=True)
class LoraEntry:
    """A tensor to come: its key, type and shape, and how to get it."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def _write_tensors(
    path: Path, entries: Sequence[LoraEntry], tensors: Iterator[Tensor], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Write `entries`, whose tensors come in the same order, as a safetensors file; returns the metadata with hashes.

    Raises ConflictError when the disk does not take it; nothing is left behind then.
    """
    full = {**metadata, MODEL_HASH: "0" * _DIGEST, LEGACY_HASH: "0" * _SHORT}
    header = _header(entries, full)
    digest = hashlib.sha256()
    with replacing(path, mode=NEW_FILE_MODE) as file:
        file.write(header)
        for entry, tensor in zip(entries, tensors, strict=True):
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise ValueError(f"{entry.key}: expected the shape {entry.shape}, got {tuple(tensor.shape)}")
            data = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            digest.update(data)
            file.write(data)
        full[MODEL_HASH] = digest.hexdigest()
        file.seek(_LEGACY_START)
        full[LEGACY_HASH] = hashlib.sha256(file.read(_LEGACY_LENGTH)).hexdigest()[:_SHORT]
        file.seek(0)
        file.write(_header(entries, full))
    return full


def header_room(names: Sequence[str]) -> int:
    """What the header of a LoRA of these modules takes at most: keys, shapes, places and the error of each."""
    return 2500 + sum(4 * len(name) + 290 for name in names)


def _header(entries: Sequence[LoraEntry], metadata: Mapping[str, str]) -> bytes:
    return encode(entries_of({entry.key: (entry.dtype, entry.shape) for entry in entries}), metadata)


@dataclass(frozen=True)
class Keys:
    """The names of a module's tensors in the file; alpha None where the format has none."""

    up: str
    down: str
    alpha: str | None


def kohya_keys(name: str) -> Keys:
    """sd-scripts' names, which ComfyUI, diffusers and the web UIs read as well."""
    return Keys(f"{name}.lora_up.weight", f"{name}.lora_down.weight", f"{name}.alpha")


@dataclass(frozen=True)
class FinishedModule:
    """A module as it goes into one file. error: part of the weight's norm that is missing, rounding included.

    shared_alpha: None for the one that makes alpha / width the module's scale; any other goes into the factors.
    padding: columns of zeros, for loaders that take one rank for all. up_dimensions: of the up factor's shape, where it
    does not follow from the weight's.
    """

    module: StoredModule
    rank: int
    error: float
    shared_alpha: float | None = None
    padding: int = 0
    up_dimensions: int | None = None

    @property
    def width(self) -> int:
        """The rank that loaders see."""
        return self.rank + self.padding

    @property
    def alpha(self) -> float:
        """The alpha in the file: the scale times the width, or the one that all modules share."""
        return self.module.scale * self.width if self.shared_alpha is None else self.shared_alpha

    @property
    def gain(self) -> float:
        """What each factor is multiplied with, so that alpha / width * up @ down stays what it is."""
        return 1.0 if self.shared_alpha is None else float((self.module.scale * self.width / self.shared_alpha) ** 0.5)


@dataclass(frozen=True)
class Written:
    """A finished file."""

    path: Path
    modules: tuple[FinishedModule, ...]
    size: int
    metadata: Mapping[str, str]

    @property
    def error(self) -> float:
        """Of all modules together: part of the whole difference's norm that is missing."""
        energy = sum(kept.module.used_energy for kept in self.modules)
        lost = sum(kept.error**2 * kept.module.used_energy for kept in self.modules)
        return float((lost / energy) ** 0.5) if energy else 0.0


def keep(
    modules: Sequence[StoredModule], ranks: Sequence[int], spool: Spool, clamp: float | None
) -> list[FinishedModule]:
    """Modules with their ranks and errors. clamp: see `_clamped`; its damage is measured in the factors."""
    kept = []
    for module, rank in zip(modules, ranks, strict=True):
        error = module.error(rank)
        if clamp is not None and module.energy:
            error = (error**2 + _damage(module, rank, spool, clamp) / module.energy) ** 0.5
        kept.append(FinishedModule(module, rank, error))
    return kept


def with_one_alpha(kept: list[FinishedModule]) -> list[FinishedModule]:
    """One alpha for all where ranks are mixed, the most common one.

    diffusers loses the alphas of attention layers that differ from the rest and takes the rest's for them; with one
    for all there is nothing to lose, and every loader takes alpha / rank with the module's own rank.
    """
    alphas = Counter(item.alpha for item in kept)
    if len(alphas) <= 1 or min(alphas) <= 0:
        return kept
    common = alphas.most_common(1)[0][0]
    return [item if item.alpha == common else replace(item, shared_alpha=common) for item in kept]


def with_alpha(kept: list[FinishedModule], alpha: float) -> list[FinishedModule]:
    """The same products with this alpha for all: the rest of the scale goes into the factors."""
    return [replace(item, shared_alpha=alpha) for item in kept]


def write(
    path: Path,
    kept: Sequence[FinishedModule],
    spool: Spool,
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype,
    clamp: float | None = None,
    keys: Callable[[str], Keys] = kohya_keys,
    others: Mapping[str, Tensor] | None = None,
) -> Written:
    """Write one file. others: tensors that are carried over as they are. Raises ConflictError."""
    carried = others or {}
    entries = [entry for item in kept for entry in _entries(item, keys(item.module.name), dtype)]
    entries += [LoraEntry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in carried.items()]

    def tensors() -> Iterator[Tensor]:
        for item in kept:
            yield from _tensors(item, spool, dtype, clamp, keys(item.module.name))
        yield from carried.values()

    with explained_target(path):
        full = _write_tensors(path, entries, tensors(), metadata)
        return Written(path, tuple(kept), path.stat().st_size, full)


def _shapes(item: FinishedModule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    out, *rest = item.module.shape
    ones = len(rest) - 1 if item.up_dimensions is None else item.up_dimensions - 2
    return (out, item.width, *(1 for _ in range(ones))), (item.width, *rest)


def _entries(item: FinishedModule, keys: Keys, dtype: torch.dtype) -> Iterator[LoraEntry]:
    up, down = _shapes(item)
    if keys.alpha:
        yield LoraEntry(keys.alpha, torch.float32, ())
    yield LoraEntry(keys.down, item.module.dtype or dtype, down)
    yield LoraEntry(keys.up, item.module.dtype or dtype, up)


def _tensors(
    item: FinishedModule, spool: Spool, dtype: torch.dtype, clamp: float | None, keys: Keys
) -> Iterator[Tensor]:
    up, down = spool.factors(item.module, item.rank)
    if clamp is not None:
        up, down = _clamped(item.module, up, down, clamp)
    if item.gain != 1:
        up, down = up.float() * item.gain, down.float() * item.gain
    if item.padding:
        up, down = pad(up, (0, item.padding)), pad(down, (0, 0, 0, item.padding))
    up_shape, down_shape = _shapes(item)
    if keys.alpha:
        yield torch.tensor(item.alpha, dtype=torch.float32)
    yield _cast(down, item.module.dtype or dtype, item).view(down_shape)
    yield _cast(up, item.module.dtype or dtype, item).view(up_shape)


def _cast(factor: Tensor, dtype: torch.dtype, item: FinishedModule) -> Tensor:
    cast = factor.to(dtype)
    if dtype == torch.float16 and not cast.isfinite().all():
        raise UsageError(f"{item.module.name} has values beyond what float16 can hold: give --dtype bf16 or fp32")
    return cast


def _clamped(module: StoredModule, up: Tensor, down: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """As sd-scripts: all of the singular values in `up`, then both factors cut at a quantile of their elements."""
    roots = module.values[: down.shape[0]].sqrt().float()
    left, right = up.float() * roots, down.float() / roots.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    limit = float(torch.quantile(torch.cat([left.flatten(), right.flatten()]), quantile))
    return left.clamp(-limit, limit), right.clamp(-limit, limit)


def _damage(module: StoredModule, rank: int, spool: Spool, clamp: float) -> float:
    """Squared norm of the change that clamping makes to the product, from small Gram matrices in float64."""
    up, down = (factor.double() for factor in spool.factors(module, rank))
    left, right = (factor.double() for factor in _clamped(module, up.float(), down.float(), clamp))
    before = ((up.T @ up) * (down @ down.T)).sum()
    after = ((left.T @ left) * (right @ right.T)).sum()
    return max(0.0, float(before + after - 2 * ((up.T @ left) * (down @ right.T)).sum()))
