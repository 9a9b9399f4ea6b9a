"""From spooled factors to LoRA files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.files.largefile import explained
from kohya_ext.lora import lorafile
from kohya_ext.lora.lorafile import Entry
from kohya_ext.lora.spool import Module, Spool


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
class Kept:
    """A module as it goes into one file. error: part of the weight's norm that is missing, rounding included.

    shared_alpha: None for the one that makes alpha / rank the module's scale; any other goes into the factors.
    """

    module: Module
    rank: int
    error: float
    shared_alpha: float | None = None

    @property
    def alpha(self) -> float:
        return self.module.scale * self.rank if self.shared_alpha is None else self.shared_alpha

    @property
    def gain(self) -> float:
        """What each factor is multiplied with, so that alpha / rank * up @ down stays what it is."""
        return 1.0 if self.shared_alpha is None else float((self.module.scale * self.rank / self.shared_alpha) ** 0.5)


@dataclass(frozen=True)
class Written:
    """A finished file."""

    path: Path
    modules: tuple[Kept, ...]
    size: int
    metadata: Mapping[str, str]

    @property
    def error(self) -> float:
        """Of all modules together: part of the whole difference's norm that is missing."""
        energy = sum(kept.module.energy for kept in self.modules)
        lost = sum(kept.error**2 * kept.module.energy for kept in self.modules)
        return float((lost / energy) ** 0.5) if energy else 0.0


def keep(modules: Sequence[Module], ranks: Sequence[int], spool: Spool, clamp: float | None) -> list[Kept]:
    """Modules with their ranks and errors. clamp: see `_clamped`; its damage is measured in the factors."""
    kept = []
    for module, rank in zip(modules, ranks, strict=True):
        error = module.error(rank)
        if clamp is not None and module.energy:
            error = (error**2 + _damage(module, rank, spool, clamp) / module.energy) ** 0.5
        kept.append(Kept(module, rank, error))
    return _with_one_alpha(kept)


def _with_one_alpha(kept: list[Kept]) -> list[Kept]:
    """One alpha for all where ranks are mixed, the most common one.

    diffusers loses the alphas of attention layers that differ from the rest and takes the rest's for them; with one
    for all there is nothing to lose, and every loader reckons alpha / rank with the module's own rank.
    """
    alphas = Counter(item.alpha for item in kept)
    if len(alphas) == 1 or min(alphas, default=0.0) <= 0:
        return kept
    common = alphas.most_common(1)[0][0]
    return [item if item.alpha == common else replace(item, shared_alpha=common) for item in kept]


def write(
    path: Path,
    kept: Sequence[Kept],
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
    entries += [Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in carried.items()]

    def tensors() -> Iterator[Tensor]:
        for item in kept:
            yield from _tensors(item, spool, dtype, clamp, keys(item.module.name))
        yield from carried.values()

    with explained(path):
        full = lorafile.write(path, entries, tensors(), metadata)
        return Written(path, tuple(kept), path.stat().st_size, full)


def _shapes(item: Kept) -> tuple[tuple[int, ...], tuple[int, ...]]:
    out, *rest = item.module.shape
    return (out, item.rank, *(1 for _ in rest[1:])), (item.rank, *rest)


def _entries(item: Kept, keys: Keys, dtype: torch.dtype) -> Iterator[Entry]:
    up, down = _shapes(item)
    if keys.alpha:
        yield Entry(keys.alpha, torch.float32, ())
    yield Entry(keys.down, dtype, down)
    yield Entry(keys.up, dtype, up)


def _tensors(item: Kept, spool: Spool, dtype: torch.dtype, clamp: float | None, keys: Keys) -> Iterator[Tensor]:
    up, down = spool.factors(item.module, item.rank)
    if clamp is not None:
        up, down = _clamped(item.module, up, down, clamp)
    if item.gain != 1:
        up, down = up.float() * item.gain, down.float() * item.gain
    up_shape, down_shape = _shapes(item)
    if keys.alpha:
        yield torch.tensor(item.alpha, dtype=torch.float32)
    yield down.to(dtype).view(down_shape)
    yield up.to(dtype).view(up_shape)


def _clamped(module: Module, up: Tensor, down: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """As sd-scripts: all of the singular values in `up`, then both factors cut at a quantile of their elements."""
    roots = module.values[: down.shape[0]].sqrt().float()
    left, right = up.float() * roots, down.float() / roots.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    limit = float(torch.quantile(torch.cat([left.flatten(), right.flatten()]), quantile))
    return left.clamp(-limit, limit), right.clamp(-limit, limit)


def _damage(module: Module, rank: int, spool: Spool, clamp: float) -> float:
    """Squared norm of the change that clamping makes to the product, from small Gram matrices in float64."""
    up, down = (factor.double() for factor in spool.factors(module, rank))
    left, right = (factor.double() for factor in _clamped(module, up.float(), down.float(), clamp))
    before = ((up.T @ up) * (down @ down.T)).sum()
    after = ((left.T @ left) * (right @ right.T)).sum()
    return max(0.0, float(before + after - 2 * ((up.T @ left) * (down @ right.T)).sum()))
