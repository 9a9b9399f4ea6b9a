"""Random numbers of our own for a while, without disturbing those of the training. Imports no torch until then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DEVICES = ("cuda", "mps", "xpu")


def kept() -> dict[str, Any]:
    """The states of all generators in use, for `put_back`. A device is not woken up for it."""
    from kohya_ext.runtime import rng

    return rng.of_all() if any(map(_in_use, _DEVICES)) else rng.of_data()


def put_back(states: dict[str, Any]) -> None:
    """Continue from `kept` states."""
    from kohya_ext.runtime import rng

    rng.put_back(states)


def seed_all(seed: int) -> None:
    """Start all generators from a seed below 2**32."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    # not torch.manual_seed: for a device that is not in use yet it would seed what comes later
    torch.default_generator.manual_seed(seed)
    for name in filter(_in_use, _DEVICES):
        module = getattr(torch, name)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)


@contextmanager
def undisturbed(seed: int) -> Iterator[None]:
    """Random numbers from `seed` while this lasts; then those that would have come."""
    states = kept()
    try:
        seed_all(seed)
        yield
    finally:
        put_back(states)


def _in_use(device: str) -> bool:
    import torch

    module = getattr(torch, device, None)
    available = getattr(module, "is_available", None)
    initialized = getattr(module, "is_initialized", lambda: True)
    return callable(available) and bool(available()) and bool(initialized())
