"""A LoRA at a lower rank: the truncated SVD of every product of factors, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.about import VERSION
from kohya_ext.errors import UsageError
from kohya_ext.files.largefile import explained
from kohya_ext.lora import assemble, lorafile, metadata, rank, smallcore, workers
from kohya_ext.lora.assemble import Keys, Written
from kohya_ext.lora.lorafile import Progress
from kohya_ext.lora.pairs import ADAPTER_METADATA, LoraFile, Pair, read_pairs
from kohya_ext.lora.spool import Module, Spool
from kohya_ext.lora.svd import LowRank
from kohya_ext.lora.tensorfile import open_tensors

FLOATS = {torch.float16, torch.bfloat16, torch.float32}


@dataclass(frozen=True)
class Settings:
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
    """What came out. ranks_before: by module name. spectra: all singular values of each module, scale left out."""

    written: Written
    ranks_before: Mapping[str, int]
    spectra: Mapping[str, Tensor]
    notes: tuple[str, ...]


def opened(path: Path, settings: Settings) -> LoraFile:
    """Raises UsageError or UnsupportedError."""
    return read_pairs(open_tensors(path, allow_pickle=settings.allow_pickle))


def run(found: LoraFile, path: Path, settings: Settings, progress: Progress | None = None) -> Resized:
    """Resize and write. Raises UsageError and ConflictError."""
    dtype = settings.dtype or _dtype(found.pairs[0])
    with explained(path), Spool(path, dtype, exact=_mixed(found, settings)) as spool:
        modules, spectra = _decompose(found, settings, spool, progress)
        ranks = _ranks(modules, spectra, settings, dtype)
        fold = found.peft_scale is not None
        names = _keys(found, dynamic=len(set(ranks)) > 1)
        kept = assemble.keep(modules, ranks, spool, None)
        known = _metadata(found, settings, kept, path)
        others = {key: found.source.load(key) for key in found.others}
        written = assemble.write(path, kept, spool, known, dtype=dtype, keys=names.__getitem__, others=others)
    notes = [f"{len(others)} tensors that belong to no pair were carried over as they are"] if others else []
    if fold and found.peft_scale != 1:
        notes.append(
            f"the adapter's scale lora_alpha / r = {found.peft_scale:g} is now in the factors: "
            "a configuration beside the new file must have lora_alpha equal to r"
        )
    before = {pair.name: pair.rank for pair in found.pairs}
    return Resized(written, before, spectra, tuple(notes))


def _decompose(
    found: LoraFile, settings: Settings, spool: Spool, progress: Progress | None
) -> tuple[list[Module], dict[str, Tensor]]:
    device = workers.pick_device(settings.device)
    # where no tensor can tell loaders a scale, it goes into the factors
    folded = 1.0 if found.peft_scale is None else found.peft_scale

    def one(pair: Pair) -> LowRank:
        up, down = (factor.to(device, torch.float32) for factor in pair.load())
        try:
            return smallcore.decompose(up if pair.keys.alpha else up * folded, down, _limit(pair, settings))
        except ValueError as error:
            raise UsageError(f"{found.source.path}: {pair.name} holds values that are not numbers") from error

    modules, spectra = [], {}
    largest = max(sum(pair.shape[:2]) * pair.rank + 4 * pair.rank**2 for pair in found.pairs)
    results = workers.in_order(one, found.pairs, workers.count(largest, device))
    for number, (pair, result) in enumerate(zip(found.pairs, results, strict=True), 1):
        scale = pair.scale if pair.keys.alpha else 1.0
        modules.append(spool.add(pair.name, pair.shape, result, scale))
        spectra[pair.name] = result.values
        if progress:
            progress(number, len(found.pairs), pair.name)
    return modules, spectra


def _mixed(found: LoraFile, settings: Settings) -> bool:
    """Whether modules of the new file may differ in rank."""
    limits = {min(_limit(pair, settings), pair.rank) for pair in found.pairs}
    return bool(settings.dynamic) or settings.size is not None or len(limits) > 1


def _limit(pair: Pair, settings: Settings) -> int:
    wide = any(length > 1 for length in pair.shape[2:])
    return settings.conv_rank if wide and settings.conv_rank else settings.rank


def _ranks(modules: list[Module], spectra: Mapping[str, Tensor], settings: Settings, dtype: torch.dtype) -> list[int]:
    if settings.dynamic:
        return [
            rank.dynamic(spectra[module.name], settings.dynamic, settings.parameter, module.rank) for module in modules
        ]
    if settings.size is not None:
        item = torch.empty((), dtype=dtype).element_size()
        weighed = [
            # the part that the module plays when used
            rank.Spectrum(module.values * abs(module.scale), module.energy, sum(module.sides) * item)
            for module in modules
        ]
        ranks = rank.by_size(weighed, settings.size - lorafile.header_room([module.name for module in modules]))
        if ranks is None:
            raise UsageError(f"--size: even rank 1 of {len(modules)} modules takes more than {settings.size} bytes")
        return ranks
    return [
        1 if not len(module.values) or float(module.values[0]) <= rank.NEGLIGIBLE else module.rank for module in modules
    ]


def _keys(found: LoraFile, *, dynamic: bool) -> dict[str, Keys]:
    """The input's names. Without alpha loaders take one rank for all as scale 1, so mixed ranks need their own."""
    names = {}
    for pair in found.pairs:
        alpha = pair.keys.alpha or (f"{pair.name}.alpha" if dynamic else None)
        names[pair.name] = Keys(pair.keys.up, pair.keys.down, alpha)
    return names


def _metadata(found: LoraFile, settings: Settings, kept: list[assemble.Kept], path: Path) -> dict[str, str]:
    """The input's, with the new ranks and a comment in sd-scripts' place for it."""
    known = {key: value for key, value in found.source.metadata.items() if key != ADAPTER_METADATA}
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


def _dtype(pair: Pair) -> torch.dtype:
    found: torch.dtype = pair.source.load(pair.keys.down).dtype
    return found if found in FLOATS else torch.float32
