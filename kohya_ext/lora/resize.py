"""A LoRA at a lower rank: the truncated SVD of every product of factors, exactly.

It must be written so that the loaders of its format take every module at its scale. With an alpha next to each module
ranks may differ. Without, ComfyUI and sd-scripts take every product at scale 1, but diffusers before 2026 takes alpha
from one module for all and divides it by each one's rank: there all modules of a network must have one rank, so lower
ones are padded with zeros. diffusers does not load its own format with a `.alpha`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.core.about import VERSION
from kohya_ext.core.errors import UsageError
from kohya_ext.files.atomic import NEW_FILE_MODE, replacing
from kohya_ext.files.disk import explained_target
from kohya_ext.lora import adapterconfig, assemble, metadata, rank, workers
from kohya_ext.lora.assemble import FinishedModule, Keys, Progress, Written, with_one_alpha
from kohya_ext.lora.factor_store import Spool, StoredModule
from kohya_ext.lora.pairs import LoraFile, Pair, read_pairs
from kohya_ext.lora.svd import LowRank, low_rank_product
from kohya_ext.tensors.tensorfile import item_size, open_tensors

KEPT = "kept"  # the method of a module whose factors stay bit for bit


@dataclass(frozen=True)
class Form:
    """What the input is like. components: of indices into its pairs, one network each. dtype: of the new file, where a
    module has none of its own.
    """

    pairs: tuple[Pair, ...]
    components: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, found: LoraFile, dtype: torch.dtype) -> Form:
        """The form of an opened LoRA."""
        places = {pair.name: index for index, pair in enumerate(found.pairs)}
        components = tuple(tuple(places[pair.name] for pair in pairs) for pairs in found.components().values())
        return cls(found.pairs, components, dtype)

    def groups(self) -> list[tuple[int, ...]]:
        """The modules that must have one rank: a whole network, or each for itself."""
        found: list[tuple[int, ...]] = []
        for component in self.components:
            found += [component] if self._one_rank(component) else [(index,) for index in component]
        return found

    def fitted(self, kept: Sequence[FinishedModule]) -> list[FinishedModule]:
        """Padding and alphas as the loaders need them."""
        result = [replace(item, up_dimensions=pair.up_dimensions) for item, pair in zip(kept, self.pairs, strict=True)]
        for component in self.components:
            widest = max(result[index].rank for index in component)
            if self._one_rank(component):
                for index in component:
                    result[index] = replace(result[index], padding=widest - result[index].rank)
            members = [index for index in component if self.pairs[index].keys.alpha or self._gets_alphas(kept)]
            for alike in {self._alpha(index) for index in members}:  # linear layers and convolutions may have their own
                group = [index for index in members if self._alpha(index) == alike]
                for index, item in zip(group, with_one_alpha([result[i] for i in group]), strict=True):
                    result[index] = item
        return result

    def keys(self, ranks: Sequence[int]) -> dict[str, Keys]:
        """The input's names, by module."""
        added = self._silent and self._kohya and len(set(ranks)) > 1
        return {
            pair.name: Keys(pair.keys.up, pair.keys.down, pair.keys.alpha or (f"{pair.name}.alpha" if added else None))
            for pair in self.pairs
        }

    def item_size(self, module: StoredModule) -> int:
        """Bytes of one number of the module in the file."""
        return item_size(module.dtype or self.dtype)

    @property
    def _silent(self) -> bool:
        return all(pair.keys.alpha is None for pair in self.pairs)

    @property
    def _kohya(self) -> bool:
        return all(pair.kohya for pair in self.pairs)

    def _gets_alphas(self, kept: Sequence[FinishedModule]) -> bool:
        return self._silent and self._kohya and len({item.rank for item in kept}) > 1

    def _alpha(self, index: int) -> float:
        """What the input has; 1 where all had none."""
        pair = self.pairs[index]
        return pair.scale * pair.rank if pair.keys.alpha else 1.0

    def _one_rank(self, component: Sequence[int]) -> bool:
        """True where loaders need it and the input has it."""
        pairs = [self.pairs[index] for index in component]
        silent = all(pair.keys.alpha is None for pair in pairs) and not all(pair.kohya for pair in pairs)
        return silent and len({pair.rank for pair in pairs}) == 1


@dataclass(frozen=True)
class ResizeSettings:
    """How to resize.

    rank: of linear layers and 1x1 convolutions, the highest one where ranks are chosen by module. conv_rank: of larger
    kernels; None for the same. dynamic, parameter: see `rank.dynamic`. size: bytes of the file. dtype: None keeps the
    input's.
    """

    rank: int = 16
    conv_rank: int | None = None
    dynamic: str | None = None
    parameter: float = 0.0
    size: int | None = None
    dtype: torch.dtype | None = None
    device: str = "auto"
    allow_pickle: bool = False


@dataclass(frozen=True)
class Resized:
    """What came out. ranks_before: by module name. spectra: all singular values of each module, without the scale."""

    written: Written
    ranks_before: Mapping[str, int]
    spectra: Mapping[str, Tensor]
    notes: tuple[str, ...]


def opened(path: Path, settings: ResizeSettings) -> LoraFile:
    """Raises UsageError or UnsupportedError."""
    return read_pairs(open_tensors(path, allow_pickle=settings.allow_pickle))


def run(found: LoraFile, path: Path, settings: ResizeSettings, progress: Progress | None = None) -> Resized:
    """Resize and write. Raises UsageError and ConflictError."""
    types = {_dtype(pair, settings) for pair in found.pairs}
    dtype = types.copy().pop() if len(types) == 1 else torch.float32
    form = Form.of(found, dtype)
    with explained_target(path), Spool(path, dtype, exact=len(types) > 1 or _mixed(found, settings)) as spool:
        modules, spectra = _decompose(found, settings, spool, progress)
        known = {key: value for key, value in found.source.metadata.items() if key != adapterconfig.METADATA}
        others = {key: found.source.load(key) for key in found.others} | _biases(found)
        room = assemble.header_room([pair.name for pair in found.pairs]) + _size(known, others)
        ranks = _ranks(modules, spectra, settings, form, room)
        kept = form.fitted(assemble.keep(modules, ranks, spool, None))
        names = form.keys(ranks)
        full = _metadata(found, settings, known, kept)
        written = assemble.write(path, kept, spool, full, dtype=dtype, keys=names.__getitem__, others=others)
    notes = _notes(found, kept, len(found.others)) + _write_config(found, kept, path)
    before = {pair.name: pair.rank for pair in found.pairs}
    return Resized(written, before, spectra, tuple(notes))


def _decompose(
    found: LoraFile, settings: ResizeSettings, spool: Spool, progress: Progress | None
) -> tuple[list[StoredModule], dict[str, Tensor]]:
    device = workers.pick_device(settings.device)

    def one(pair: Pair) -> LowRank:
        up, down = (factor.to(device, torch.float32) for factor in pair.load())
        # where no tensor can tell loaders a scale, it goes into the factors
        folded = 1.0 if pair.keys.alpha else pair.scale
        try:
            result = low_rank_product(up * folded, down, _limit(pair, settings))
        except ValueError as error:
            raise UsageError(f"{found.source.path}: {pair.name} contains values that are not numbers") from error
        return replace(result, up=up, down=down, method=KEPT) if _stays(pair, settings, result, folded) else result

    modules, spectra = [], {}
    largest = max(sum(pair.shape[:2]) * pair.rank + 4 * pair.rank**2 for pair in found.pairs)
    types = {_dtype(pair, settings) for pair in found.pairs}
    results = workers.in_order(one, found.pairs, workers.count(largest, device))
    for number, (pair, result) in enumerate(zip(found.pairs, results, strict=True), 1):
        scale = pair.scale if pair.keys.alpha else 1.0
        own = _dtype(pair, settings) if len(types) > 1 else None
        modules.append(spool.add(pair.name, pair.shape, result, scale, own))
        spectra[pair.name] = result.values
        if progress:
            progress(number, len(found.pairs), pair.name)
    return modules, spectra


def _stays(pair: Pair, settings: ResizeSettings, result: LowRank, folded: float) -> bool:
    """Whether the factors can go into the new file bit for bit: nothing is cut, and nothing is multiplied into them."""
    stored = pair.source.load(pair.keys.down).dtype == pair.source.load(pair.keys.up).dtype == _dtype(pair, settings)
    whole = pair.rank == len(result.values) == len(result.down) and float(result.values[0]) > 0
    return stored and whole and folded == 1 and pair.mid is None and not settings.dynamic and settings.size is None


def _mixed(found: LoraFile, settings: ResizeSettings) -> bool:
    """Whether modules of the new file may differ in rank."""
    limits = {min(_limit(pair, settings), pair.rank, pair.shape[0], math.prod(pair.shape[1:])) for pair in found.pairs}
    return bool(settings.dynamic) or settings.size is not None or len(limits) > 1


def _limit(pair: Pair, settings: ResizeSettings) -> int:
    wide = any(length > 1 for length in pair.shape[2:])
    return settings.conv_rank if wide and settings.conv_rank else settings.rank


def _ranks(
    modules: list[StoredModule], spectra: Mapping[str, Tensor], settings: ResizeSettings, form: Form, room: int
) -> list[int]:
    if settings.dynamic:
        return [
            rank.dynamic(spectra[module.name], settings.dynamic, settings.parameter, module.rank) for module in modules
        ]
    if settings.size is not None:
        groups = form.groups()
        ranks = rank.by_size([_spectrum([modules[i] for i in group], form) for group in groups], settings.size - room)
        if ranks is None:
            raise UsageError(f"--size: even rank 1 of {len(modules)} modules takes more than {settings.size} bytes")
        chosen = {index: number for group, number in zip(groups, ranks, strict=True) for index in group}
        return [min(chosen[index], module.rank) for index, module in enumerate(modules)]
    return [module.rank if len(module.values) and float(module.values[0]) > 0 else 1 for module in modules]


def _spectrum(modules: list[StoredModule], form: Form) -> rank.Spectrum:
    """What one more rank of all these modules together keeps and costs."""
    longest = max(module.rank for module in modules)
    squares = torch.zeros(longest, dtype=torch.float64)
    for module in modules:  # the part that the module plays when used
        squares[: module.rank] += (module.values * module.scale).square()
    cost = sum(sum(module.sides) * form.item_size(module) for module in modules)
    return rank.Spectrum(squares.sqrt(), sum(module.used_energy for module in modules), cost)


def _biases(found: LoraFile) -> dict[str, Tensor]:
    """PEFT scales the biases like the products, so what goes into the factors goes into them as well."""
    folded = {pair.bias: 1.0 if pair.keys.alpha else pair.scale for pair in found.pairs if pair.bias}
    loaded = {key: found.source.load(key) for key in folded}
    return {
        key: bias if folded[key] == 1 else (bias.double() * folded[key]).to(bias.dtype) for key, bias in loaded.items()
    }


def _size(known: Mapping[str, str], others: Mapping[str, Tensor]) -> int:
    """Bytes of what is carried over: metadata, and tensors with their places in the header."""
    tensors = sum(other.numel() * other.element_size() + len(key) + 120 for key, other in others.items())
    return len(json.dumps(dict(known))) + int(tensors)


def _notes(found: LoraFile, kept: list[assemble.FinishedModule], others: int) -> list[str]:
    notes = [f"{others} tensors that belong to no pair were carried over as they are"] if others else []
    scales = sorted({pair.scale for pair in found.pairs if not pair.keys.alpha and pair.scale != 1})
    if scales:
        shown = ", ".join(f"{scale:g}" for scale in scales[:3])
        notes.append(
            f"the adapter's scale lora_alpha / r ({shown}) is now in the factors: a configuration for the new file "
            "must have lora_alpha equal to r"
        )
    if any(item.padding for item in kept):
        notes.append(
            "the file has no alphas, so loaders take one rank for each network: modules of a lower rank are padded "
            "with zeros, and the file is as large as its highest rank makes it"
        )
    return notes


def _write_config(found: LoraFile, kept: list[assemble.FinishedModule], path: Path) -> list[str]:
    """PEFT reads `adapter_model.safetensors` with the configuration next to it only."""
    if found.adapter is None or found.adapter.file is None:
        return []
    target = path.with_name(adapterconfig.FILE)
    usual = max(item.width for item in kept)
    if not path.name.startswith("adapter_model") or target.exists():
        return [f"for PEFT, {adapterconfig.FILE} next to the new file must have r = lora_alpha = {usual}"]
    text = adapterconfig.resized(found.adapter, {item.module.name: item.width for item in kept})
    with replacing(target, mode=NEW_FILE_MODE) as file:
        file.write(text.encode("utf-8"))
    return [f"{target} was written for PEFT, with r = lora_alpha = {usual}"]


def _metadata(
    found: LoraFile, settings: ResizeSettings, known: Mapping[str, str], kept: list[assemble.FinishedModule]
) -> dict[str, str]:
    """The input's, with the new ranks and a comment in sd-scripts' place for it."""
    before = max(pair.rank for pair in found.pairs)
    how = (
        f"dynamic resize with {settings.dynamic}: {settings.parameter:g} from {before}"
        if settings.dynamic
        else f"resized from rank {before} to {settings.rank}"
    )
    comment = known.get("ss_training_comment", "")
    network = metadata.network(kept)
    if not any(item.module.is_wide_kernel for item in kept):
        network["ss_network_args"] = known.get("ss_network_args", network["ss_network_args"])
    return {
        **known,
        **network,
        "ss_training_comment": f"{how}; {comment}" if comment else how,
        metadata.PREFIX + "version": VERSION,
        metadata.PREFIX + "resized_from": found.source.path.name,
        metadata.PREFIX + "resize_errors": metadata.errors(kept),
    }


def _dtype(pair: Pair, settings: ResizeSettings) -> torch.dtype:
    return settings.dtype or pair.dtype
