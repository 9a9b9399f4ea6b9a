"""All random numbers that a training draws, kept and put back: Python's, numpy's, torch's on every device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def kept() -> list[Any]:
    """The states of all generators, for `put_back`."""
    import numpy as np
    import torch

    states: list[Any] = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    states.append(torch.cuda.get_rng_state_all() if _in_use("cuda") else None)
    return states + [getattr(torch, name).get_rng_state() if _in_use(name) else None for name in ("mps", "xpu")]


def put_back(states: list[Any]) -> None:
    """Go on from `kept` states."""
    import numpy as np
    import torch

    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3] is not None:
        torch.cuda.set_rng_state_all(states[3])
    for name, state in zip(("mps", "xpu"), states[4:], strict=True):
        if state is not None:
            getattr(torch, name).set_rng_state(state)


def seed_all(seed: int) -> None:
    """Start all generators from a seed below 2**32."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    # not torch.manual_seed: for a device that is not in use yet it would seed what comes later
    torch.default_generator.manual_seed(seed)
    for name in ("cuda", "mps", "xpu"):
        if _in_use(name):
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
