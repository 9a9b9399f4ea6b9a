"""A LoRA from what a fine-tune changed: tensor by tensor out of two mapped files, never a model in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.core.errors import UsageError
from kohya_ext.files.disk import explained_target
from kohya_ext.lora import assemble, encoders, metadata, output_files, outside, rank, workers
from kohya_ext.lora.assemble import Progress, Written
from kohya_ext.lora.checkpoint import Checkpoint, Weight, only_rounding, open_checkpoint
from kohya_ext.lora.factor_store import Spool, StoredModule
from kohya_ext.lora.metadata import Hashing
from kohya_ext.lora.svd import LowRank, low_rank

NAMES_SHOWN = 3


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract.

    ranks: one file each. conv_ranks: for 3x3 convolutions, one value or one a file; empty leaves all that lies outside
    of the attention blocks out, as sd-scripts does. energy, size (bytes): choose ranks by module, up to the rank given.
    alpha: one for all modules; None for the rank, which is a scale of 1.
    clamp: quantile that factors are cut at, as sd-scripts does; None for not at all. device: auto, cpu, cuda...
    """

    ranks: tuple[int, ...] = (128,)
    conv_ranks: tuple[int, ...] = ()
    method: str = "auto"
    energy: float | None = None
    size: int | None = None
    dtype: torch.dtype = torch.float16
    text_encoders: str = "auto"
    min_diff: float = encoders.DEFAULT_MINIMUM
    alpha: float | None = None
    clamp: float | None = None
    device: str = "auto"
    allow_pickle: bool = False


@dataclass(frozen=True)
class ExtractionPlan:
    """Two models that fit together, and what will be extracted from them."""

    base: Checkpoint
    tuned: Checkpoint
    decisions: tuple[encoders.Decision, ...]
    pairs: tuple[tuple[Weight, Weight], ...]


@dataclass(frozen=True)
class Extraction:
    """What came out. unchanged: modules that no weight of differs, and so are not in the files.

    change: the whole difference of the two models, of which the files hold a part.
    """

    files: tuple[Written, ...]
    unchanged: tuple[str, ...]
    change: outside.ModelChange


@dataclass
class _Pass:
    """One pass over both models."""

    modules: list[StoredModule] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


def plan(base_path: Path, tuned_path: Path, settings: ExtractSettings) -> ExtractionPlan:
    """Open both models and see what differs. Raises UsageError or UnsupportedError when they do not fit together."""
    base = open_checkpoint(base_path, allow_pickle=settings.allow_pickle)
    tuned = open_checkpoint(tuned_path, allow_pickle=settings.allow_pickle)
    if base.architecture is not tuned.architecture:
        raise UsageError(
            f"{base_path} is {base.architecture.name}, {tuned_path} is {tuned.architecture.name}: "
            "a LoRA is the difference of two models of the same kind"
        )
    decisions = tuple(encoders.decide(base, tuned, settings.text_encoders, settings.min_diff))
    groups = {"unet", *(decision.group for decision in decisions if decision.included)}
    chosen = {
        name: weight
        for name, weight in base.weights.items()
        if weight.target.group in groups and (settings.conv_ranks or not weight.target.inner)
    }
    _require_same(base, tuned, chosen, groups, bool(settings.conv_ranks))
    return ExtractionPlan(
        base, tuned, decisions, tuple((weight, tuned.weights[name]) for name, weight in chosen.items())
    )


def run(found: ExtractionPlan, path: Path, settings: ExtractSettings, progress: Progress | None = None) -> Extraction:
    """Extract and write. Raises UsageError (weights that are not numbers, no difference) and ConflictError (disk)."""
    files = [*found.base.files, *found.tuned.files]
    exact = settings.clamp is not None or settings.alpha is not None or _mixed(found, settings)
    with Hashing(files) as hashing, explained_target(path), Spool(path, settings.dtype, exact=exact) as spool:
        done = _decompose(found, settings, spool, progress)
        if not done.modules:
            raise UsageError(f"{found.base.path} and {found.tuned.path} do not differ: there is nothing to extract")
        inside = math.fsum(module.used_energy for module in done.modules)
        device = workers.pick_device(settings.device)
        change = outside.measure(found.base, found.tuned, found.pairs, inside, device)
        written = []
        for index, target in enumerate(output_files(path, settings.ranks)):
            ranks = _ranks(done.modules, settings, index)
            kept = assemble.keep(done.modules, ranks, spool, settings.clamp)
            kept = (
                assemble.with_one_alpha(kept) if settings.alpha is None else assemble.with_alpha(kept, settings.alpha)
            )
            known = metadata.of_extraction(target, found.base, found.tuned, hashing.result(), kept, found.decisions)
            written.append(assemble.write(target, kept, spool, known, dtype=settings.dtype, clamp=settings.clamp))
    return Extraction(tuple(written), tuple(done.unchanged), change)


def difference(base: Weight, tuned: Weight, device: torch.device) -> Tensor | None:
    """The float32 difference as a matrix (out, in * kernel); None where nothing but storage rounding differs."""
    before, after = base.load(), tuned.load().reshape(base.shape)
    if only_rounding(base, tuned, before, after):
        return None
    # subtract in place: the mapped file must not be written to, so both are copied where their type is float32 already
    change = after.to(device, torch.float32, copy=True)
    change -= before.to(device, torch.float32)
    return change.flatten(1)


def _decompose(found: ExtractionPlan, settings: ExtractSettings, spool: Spool, progress: Progress | None) -> _Pass:
    device = workers.pick_device(settings.device)

    def one(pair: tuple[Weight, Weight]) -> LowRank | None:
        base, tuned = pair
        change = difference(base, tuned, device)
        if change is None:
            return None
        try:
            return low_rank(change, _limit(base.shape, settings), settings.method, base.target.name)
        except ValueError as error:
            at = tuned.source.path if base.load().isfinite().all() else base.source.path
            raise UsageError(f"{at}: {base.key} contains values that are not numbers (NaN or infinite)") from error

    done = _Pass()
    total = len(found.pairs)
    largest = max(_elements(base.shape) for base, _ in found.pairs)
    results = workers.in_order(one, found.pairs, workers.count(largest, device))
    for number, ((base, _), result) in enumerate(zip(found.pairs, results, strict=True), 1):
        if result is None:
            done.unchanged.append(base.target.name)
        else:
            done.modules.append(spool.add(base.target.name, base.shape, result))
        if progress:
            progress(number, total, base.target.name)
    return done


def _mixed(found: ExtractionPlan, settings: ExtractSettings) -> bool:
    """Whether modules of one file may differ in rank."""
    if settings.energy is not None or settings.size is not None:
        return True
    shapes = {base.shape for base, _ in found.pairs}
    limits = {min(_nominal(shape, settings, 0), shape[0], _elements(shape[1:])) for shape in shapes}
    return len(limits) > 1


def _limit(shape: tuple[int, ...], settings: ExtractSettings) -> int:
    """The highest rank that any file keeps of a module."""
    return max(_nominal(shape, settings, index) for index in range(len(settings.ranks)))


def _nominal(shape: tuple[int, ...], settings: ExtractSettings, index: int) -> int:
    if settings.conv_ranks and any(length > 1 for length in shape[2:]):
        return settings.conv_ranks[min(index, len(settings.conv_ranks) - 1)]
    return settings.ranks[index]


def _ranks(modules: Sequence[StoredModule], settings: ExtractSettings, index: int) -> list[int]:
    limits = [min(module.rank, _nominal(module.shape, settings, index)) for module in modules]
    spectra = [
        rank.Spectrum(module.values[:limit], module.energy, sum(module.sides) * _item_size(settings.dtype))
        for module, limit in zip(modules, limits, strict=True)
    ]
    if settings.energy is not None:
        return [rank.by_energy(spectrum, settings.energy) for spectrum in spectra]
    if settings.size is not None:
        ranks = rank.by_size(spectra, settings.size - assemble.header_room([module.name for module in modules]))
        if ranks is None:
            raise UsageError(f"--size: even rank 1 of {len(modules)} modules takes more than {settings.size} bytes")
        return ranks
    return limits


def _item_size(dtype: torch.dtype) -> int:
    return 4 if dtype == torch.float32 else 2


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _require_same(
    base: Checkpoint, tuned: Checkpoint, chosen: dict[str, Weight], groups: set[str], inner: bool
) -> None:
    extra = [
        name
        for name, weight in tuned.weights.items()
        if weight.target.group in groups and (inner or not weight.target.inner) and name not in chosen
    ]
    missing = [name for name in chosen if name not in tuned.weights]
    for names, where in ((missing, tuned.path), (extra, base.path)):
        if names:
            raise UsageError(f"{where} lacks {len(names)} modules that the other model has: {_some(names)}")
    wrong = [
        name for name, weight in chosen.items() if _elements(weight.shape) != _elements(tuned.weights[name].shape)
        or weight.shape[:2] != tuned.weights[name].shape[:2]
    ]  # fmt: skip
    if wrong:
        shapes = f"{list(base.weights[wrong[0]].shape)} and {list(tuned.weights[wrong[0]].shape)}"
        raise UsageError(f"the models differ in the shape of {len(wrong)} modules: {_some(wrong)} ({shapes})")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
