"""The factor pairs of a LoRA file, by whichever names they go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.lora import adapterconfig
from kohya_ext.lora.adapterconfig import Adapter
from kohya_ext.lora.assemble import Keys
from kohya_ext.tensors import adapters
from kohya_ext.tensors.tensorfile import TensorSource

# why a kind cannot be made smaller by a truncated SVD of each module
_WHY = {
    adapters.DORA: "its magnitudes belong to the base weight plus the whole product, so that a lower rank changes "
    "every weight by an amount that the file alone does not tell",
    adapters.FULL: "it has no factors that could be cut",
}


@dataclass(frozen=True)
class Pair:
    """One module. scale: what its product is multiplied with when used; 1 where the file says nothing.

    shape: of the weight, (out, in) or (out, in, kernel, kernel). mid: key of a Tucker core. bias: key of PEFT's bias.
    kohya: in sd-scripts' spelling.
    """

    name: str
    keys: Keys
    source: TensorSource
    scale: float
    mid: str | None = None
    bias: str | None = None
    kohya: bool = True

    @property
    def rank(self) -> int:
        """Rows of the down factor."""
        return self.source.shapes[self.keys.down][0]

    @property
    def dtype(self) -> torch.dtype:
        """The stored type of the factors; float32 where it cannot hold what comes out."""
        found: torch.dtype = self.source.load(self.keys.down).dtype
        return found if found in (torch.float16, torch.bfloat16, torch.float32) else torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that the product changes."""
        out, (_, width, *kernel) = self.source.shapes[self.keys.up][0], self.source.shapes[self.keys.down]
        return (out, width, *(self.source.shapes[self.mid][2:] if self.mid else kernel))

    @property
    def up_dimensions(self) -> int:
        """Dimensions of the up factor as it is stored."""
        return len(self.source.shapes[self.keys.up])

    def load(self) -> tuple[Tensor, Tensor]:
        """(up, down) as matrices (out, rank) and (rank, in * kernel); a Tucker core is multiplied into down."""
        up, down = self.source.load(self.keys.up).flatten(1), self.source.load(self.keys.down).flatten(1)
        if self.mid is None:
            return up, down
        core = self.source.load(self.mid).double()
        whole = torch.einsum("rs...,si->ri...", core, down.double())
        return up, whole.flatten(1).float()


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA. others: keys of tensors that belong to no pair. adapter: PEFT's configuration, which keeps scales
    that the tensors do not tell; None when there is none.
    """

    source: TensorSource
    pairs: tuple[Pair, ...]
    others: tuple[str, ...]
    adapter: Adapter | None

    def components(self) -> Mapping[str, list[Pair]]:
        """The pairs of each network that loaders give an adapter of its own."""
        found: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            found.setdefault(adapters.component(pair.name), []).append(pair)
        return found


def read_pairs(source: TensorSource) -> LoraFile:
    """Raises UsageError when the file is not a LoRA or is damaged, UnsupportedError for other kinds of adapters."""
    keys = frozenset(source.shapes)
    _require_plain(source, adapters.kinds(keys))
    adapter = adapterconfig.read(source)
    used: set[str] = set()
    pairs = []
    for key in source.shapes:
        found = adapters.factors(key, keys)
        if found is None:
            continue
        pair = _pair(found, source, adapter)
        pairs.append(pair)
        used |= {pair.keys.up, pair.keys.down, pair.keys.alpha or "", pair.mid or "", pair.bias or ""}
    others = tuple(key for key in source.shapes if key not in used)
    _check_rest(source, others)
    if not pairs:
        raise UsageError(f"{source.path} contains no LoRA: no key with lora_down / lora_up or lora_A / lora_B")
    for name, count in Counter(pair.name for pair in pairs).items():
        if count > 1:
            raise UsageError(f"{source.path}: {name} occurs {count} times, in different spellings")
    return LoraFile(source, tuple(pairs), others, adapter)


def _require_plain(source: TensorSource, kinds: Mapping[str, str]) -> None:
    for kind, key in kinds.items():
        if kind == adapters.LORA or (kind == adapters.FULL and adapters.LORA in kinds):
            continue  # biases and norms next to a LoRA stay what they are
        why, article = _WHY.get(kind), "an" if kind.startswith(("IA3", "OFT")) else "a"
        raise UnsupportedError(
            f"{source.path} is {article} {kind} ({key}): only plain LoRA can be resized{f'; {why}' if why else ''}"
        )


def _pair(found: adapters.Factors, source: TensorSource, adapter: Adapter | None) -> Pair:
    shapes = source.shapes
    mid = found.mid if found.mid in shapes else None
    _check(found, mid, source)
    rank = shapes[found.down][0]
    alpha = found.alpha if found.alpha in shapes else None
    configured = adapter.scale(found.module, rank) if adapter and alpha is None else 1.0
    scale = configured if alpha is None else _alpha(alpha, source) / rank
    bias = found.bias if found.bias in shapes else None
    return Pair(found.module, Keys(found.up, found.down, alpha), source, scale, mid, bias, found.kohya)


def _alpha(key: str, source: TensorSource) -> float:
    count = math.prod(source.shapes[key])
    if count != 1:
        raise UsageError(f"{source.path} is damaged: {key} holds {count} values, an alpha is one number")
    value = float(source.load(key).reshape(-1)[0])
    if not math.isfinite(value):
        raise UsageError(f"{source.path} is damaged: {key} is {value}, an alpha is a finite number")
    return value


def _check(found: adapters.Factors, mid: str | None, source: TensorSource) -> None:
    shapes, path = source.shapes, source.path
    if found.up not in shapes:
        raise UsageError(f"{path} is damaged: {found.down} is present, {found.up} is missing")
    up, down = shapes[found.up], shapes[found.down]
    if len(up) < 2 or len(down) < 2 or up[1] != down[0] or any(length != 1 for length in up[2:]):
        raise UsageError(f"{path}: the factors of {found.module} do not fit together ({list(up)} and {list(down)})")
    if not math.prod(up) * math.prod(down):
        raise UsageError(f"{path}: {found.module} has rank 0")
    if mid and (len(shapes[mid]) < 3 or shapes[mid][:2] != (up[1], down[0]) or any(n != 1 for n in down[2:])):
        raise UsageError(
            f"{path}: the core {mid} {list(shapes[mid])} does not fit its factors {list(up)}, {list(down)}"
        )


def _check_rest(source: TensorSource, others: tuple[str, ...]) -> None:
    """A factor without the other, or a spelling that we do not know, must not be carried over as if it were done."""
    for key in others:
        if not adapters.is_half(key):
            continue
        for up, down in ((".lora_up", ".lora_down"), (".lora_B", ".lora_A"), ("lora.up", "lora.down")):
            if up in key and (other := key.replace(up, down)) not in source.shapes:
                raise UsageError(f"{source.path} is damaged: {key} is present, {other} is missing")
        raise UsageError(f"{source.path}: {key} is a factor of a LoRA with an unknown kind of key")
