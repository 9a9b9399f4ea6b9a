"""Everything around a script that a preflight puts in place: stand-ins, places to stop, and what is written down."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.files.mirror import mirrored
from kohya_ext.spec.hooks import TRAINING_PACKAGE
from kohya_ext.spec.preflight import (
    CACHING_METHODS,
    DATASET_GROUP,
    ENCODE_BATCH,
    HASHES,
    LOAD_DATA_CONFIG,
    LOAD_VAE,
    SCHEDULER,
    VAE_OF_PREPARATION,
    WRITE_LATENTS,
)
from kohya_ext.tracing.between_steps import phases
from kohya_ext.tracing.facts import Facts
from kohya_ext.tracing.fake_world import DEVICE, fake_world
from kohya_ext.tracing.ledger import Ledger
from kohya_ext.tracing.milestones import LOOP, STEPS, Reached
from kohya_ext.tracing.milestones import SCHEDULER as AT_SCHEDULER
from kohya_ext.tracing.steps import Steps, cache_in_phase, follow, give_largest
from kohya_ext.tracing.watching import Change, watch


@dataclass
class Stage:
    """What is in place. ledger, steps: where memory is asked for."""

    until: str
    folder: Path
    facts: Facts
    stand_in_images: Path
    ledger: Ledger | None = None
    steps: Steps | None = None

    @property
    def memory(self) -> dict[str, Any] | None:
        """What was counted, where memory was asked for."""
        if self.ledger is None:
            return None
        share = None if self.steps is None else self.steps.ema_free_share
        return {**self.ledger.as_json(), **({} if share is None else {"ema_free_share": share})}


@contextlib.contextmanager
def staged(request: dict[str, Any], folder: Path, facts: Facts) -> Iterator[Stage]:
    """Put it all in place for this process; nothing is put back.

    Args:
        request: see `kohya_ext.preflight.child.Request`.
        folder: the temporary folder.
        facts: what is seen is added to it.
    """
    stage = Stage(request["until"], folder, facts, Path(request["images"]))
    device = str(request.get("device") or DEVICE)
    if stage.until == STEPS:
        stage.ledger = Ledger(device)
    watch(frozenset({TRAINING_PACKAGE}), _changes(stage))
    if request["activate"]:
        from kohya_ext.runtime import activate

        activate(TRAINING_PACKAGE)
    from kohya_ext.tracing.packages import replace_packages
    from kohya_ext.tracing.training_device import on_one_device

    with fake_world(stage.ledger, as_cuda=device == DEVICE):
        replace_packages(request, folder, facts.notes)
        on_one_device(device)
        if stage.ledger is not None:
            stage.steps = follow(stage.ledger, facts)
        _stop_at_the_loop(stage)
        yield stage


def _changes(stage: Stage) -> dict[str, Change]:
    facts = stage.facts

    def scheduler(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(args: Any, optimizer: Any, processes: int = 1, *more: Any, **named: Any) -> Any:
            facts.see_optimizer(args, optimizer, processes)
            if stage.until == AT_SCHEDULER and not getattr(args, "fused_optimizer_groups", None):
                raise Reached(AT_SCHEDULER)
            return original(args, optimizer, processes, *more, **named)

        return call

    def group(original: type) -> type:
        initialise = original.__init__  # type: ignore[misc]

        @functools.wraps(initialise)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            initialise(self, *args, **kwargs)
            facts.see_data(self)

        original.__init__ = init  # type: ignore[misc]
        if stage.ledger is not None:
            cache_in_phase(original, stage.ledger)
            give_largest(original)
        else:
            for name in CACHING_METHODS:
                if hasattr(original, name):
                    setattr(original, name, lambda self, *args, **kwargs: None)
        return original

    return {
        SCHEDULER: scheduler,
        DATASET_GROUP: group,
        ENCODE_BATCH: _written_empty,
        LOAD_VAE: _without_vae,
        LOAD_DATA_CONFIG: functools.partial(_own_data, stage),
        **({} if stage.ledger is None else phases(stage.ledger)),
        **{name: (lambda original: lambda *args, **kwargs: "0" * 64) for name in HASHES[:2]},
        HASHES[2]: lambda original: lambda *args, **kwargs: ("0" * 64, "0" * 64),
    }


def _without_vae(original: Callable[..., Any]) -> Callable[..., Any] | None:
    """Its stand-in where a preparation step loads it; the family that has a function of this name trains with it."""
    return (lambda *args, **kwargs: _NoVae()) if original.__module__.endswith(VAE_OF_PREPARATION) else None


class _NoVae:
    """In the place of a VAE that only encodes what is written without contents anyway."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self


def _written_empty(original: Callable[..., Any]) -> Callable[..., Any]:
    """Latents of a batch of images, of the right shape and without contents; no image is decoded for it."""
    write = original.__globals__.get(WRITE_LATENTS)

    @functools.wraps(original)
    def call(vae: Any, cache_to_disk: bool, infos: list[Any], *args: Any, **kwargs: Any) -> None:
        if not isinstance(vae, _NoVae):
            original(vae, cache_to_disk, infos, *args, **kwargs)
            return
        import torch

        for info in infos:
            width, height = info.bucket_reso
            latents = torch.zeros(4, height // 8, width // 8)
            size, crop = list(info.resized_size), (0, 0, width, height)
            if cache_to_disk and write is not None:
                write(info.latents_npz, latents, size, crop)
            else:
                info.latents, info.latents_original_size, info.latents_crop_ltrb = latents, size, crop

    return call


def _own_data(stage: Stage, original: Callable[..., Any]) -> Callable[..., Any]:
    """A data set configuration whose folders are mirrored, so that caches next to images are written elsewhere."""

    @functools.wraps(original)
    def call(file: Any) -> Any:
        found = original(file)
        for dataset in found.get("datasets", []):
            for subset in dataset.get("subsets", []):
                for key in ("image_dir", "conditioning_data_dir"):
                    if subset.get(key):
                        subset[key] = _mirror(stage, subset[key])
        return found

    return call


def _mirror(stage: Stage, folder: str) -> str:
    if os.path.isdir(folder):  # noqa: PTH112 - may be any text
        mirror = str(mirrored(Path(folder), stage.folder))
        stage.facts.mirrors[mirror] = folder
        return mirror
    stage.facts.notes.append(f"{folder} is not available: generated images are used instead")
    return str(stage.stand_in_images)


def _stop_at_the_loop(stage: Stage) -> None:
    """The training loop begins where the loader of the training data is first iterated."""
    from torch.utils.data import DataLoader

    initialise, iterate = DataLoader.__init__, DataLoader.__iter__

    def init(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        collate = kwargs.get("collate_fn")
        if collate is not None and getattr(collate, "dataset", dataset) is None:
            collate.dataset = dataset  # it is left to the workers, of which there are none here
        kwargs.update(num_workers=0, persistent_workers=False)
        kwargs.pop("prefetch_factor", None)
        kwargs.pop("multiprocessing_context", None)
        initialise(self, dataset, *args, **kwargs)

    def iter_(self: Any) -> Any:
        if type(self.dataset).__name__ == DATASET_GROUP:
            if stage.steps is None:
                raise Reached(LOOP)
            stage.steps.begin()
            return _until_over(iterate(self), stage.steps)
        return iterate(self)

    DataLoader.__init__ = init
    DataLoader.__iter__ = iter_


def _until_over(batches: Iterator[Any], steps: Steps) -> Iterator[Any]:
    for batch in batches:
        yield batch
        steps.stop_if_over()
    steps.stop_if_over()
