"""Data sets, loaders and their workers, brought to where they were when a state was saved.

The order of the batches depends on random numbers at the start of each epoch; captions and augmentation depend on the
generators of the process that reads them, which a data set seeds again when it is told of the next epoch. So the data
set is told of every epoch in turn, and the batches of the epoch that was interrupted are read again and discarded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kohya_ext.runtime import loader as loaders
from kohya_ext.runtime import rng


def workers(loader: Any) -> int:
    """How many processes read the data, 0 for the training's own."""
    return int(getattr(loader, "num_workers", 0) or 0)


def persistent(loader: Any) -> bool:
    """Whether the workers live through all epochs, and so remember them."""
    return workers(loader) > 0 and bool(getattr(loader, "persistent_workers", False))


def data_set(loader: Any) -> Any:
    """The data set that the collator tells of epochs and steps in this process; None where workers do that."""
    return getattr(getattr(loader, "collate_fn", None), "dataset", None)


def caption_step(loader: Any) -> int:
    """The step that the data set in this process knows, which decides on the number of tags in a token warmup."""
    found = data_set(loader)
    first = next(iter(getattr(found, "datasets", [found])), None)
    return int(getattr(first, "current_step", 0) or 0)


def counts_tags_by_step(dataset: Any) -> bool:
    """Whether captions depend on the step (token warmup): with workers, on how far each has read ahead."""
    subsets = [subset for one in _members(dataset) for subset in getattr(one, "subsets", [])]
    return any(getattr(subset, "token_warmup_step", 0) for subset in subsets)


def fingerprint(dataset: Any) -> str:
    """A hash of which images there are, in which order, how often, and in which buckets."""
    digest = hashlib.sha256()
    for one in _members(dataset):
        images = getattr(one, "image_data", None)
        digest.update(f"{type(one).__name__} {getattr(one, 'batch_size', '')}\n".encode())
        if not isinstance(images, dict):
            digest.update(f"{len(one)}\n".encode())
            continue
        for key, image in images.items():
            facts = (Path(str(key)).name, getattr(image, "num_repeats", 1), getattr(image, "bucket_reso", None))
            digest.update(f"{facts}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _members(dataset: Any) -> list[Any]:
    return [getattr(one, "dreambooth_dataset_delegate", one) for one in getattr(dataset, "datasets", [dataset])]


def tell_epochs(loader: Any, epochs: int) -> None:
    """Let the data set of this process shuffle as it did at the start of each of the first `epochs` epochs."""
    found = data_set(loader)
    if found is None:
        return
    for epoch in range(1, epochs + 1):
        found.set_current_epoch(epoch)


def live_through(
    loader: Any, starts: list[str], current_epoch: Any, starting: Callable[[], AbstractContextManager[None]]
) -> None:
    """Let persistent workers read all epochs before this one again.

    starts: torch's state at the start of each of those epochs, packed. starting: lasts while workers may be started.
    """
    for epoch, start in enumerate(starts):
        current_epoch.value = epoch + 1
        rng.put_back_torch(start)
        batches = loaders.plain(loader)
        with starting():
            next(batches, None)
        for _ in batches:
            pass
    current_epoch.value = len(starts) + 1
