"""The states of all random number generators that a training draws from: taken, put back, and as JSON."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch

from kohya_ext.runtime.run import run

# name of the generator -> its state, as its own library gives it
States = dict[str, Any]


def spare_from_logs() -> None:
    """Kohya's log lines draw from Python's generator: rich numbers links at random. Give them one of their own."""
    before = random.getstate()
    try:
        import rich.style
    except ImportError:
        return
    finally:
        random.setstate(before)  # its import draws as well
    if hasattr(rich.style, "randint"):
        run.replace(rich.style, "randint", random.Random().randint)  # noqa: S311 - no secret


def of_data() -> States:
    """Those that data sets, samplers and workers draw from, on the CPU. Quick enough for every batch."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def of_all() -> States:
    """Those of the devices too."""
    states = of_data()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    for name in ("mps", "xpu"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            states[name] = module.get_rng_state()
    return states


def put_back(states: States) -> None:
    """Let every generator continue from where it was."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    for name in ("mps", "xpu"):
        if name in states:
            getattr(torch, name).set_rng_state(states[name])


def to_json(states: States) -> dict[str, Any]:
    """The states in what JSON can hold."""
    version, words, gauss = states["python"]
    kind, keys, position, has_gauss, cached = states["numpy"]
    made: dict[str, Any] = {
        "python": [version, _packed(np.asarray(words, dtype="<u4")), gauss],
        "numpy": [kind, _packed(np.asarray(keys, dtype="<u4")), int(position), int(has_gauss), float(cached)],
        "torch": _packed(states["torch"].numpy()),
    }
    for name in ("mps", "xpu"):
        if name in states:
            made[name] = _packed(states[name].cpu().numpy())
    if "cuda" in states:
        made["cuda"] = [_packed(state.numpy()) for state in states["cuda"]]
    return made


def from_json(made: dict[str, Any]) -> States:
    """The states again. Raises ValueError, KeyError or TypeError where they are damaged."""
    version, words, gauss = made["python"]
    kind, keys, position, has_gauss, cached = made["numpy"]
    python = (version, tuple(int(word) for word in _unpacked(words, "<u4")), gauss)
    states: States = {
        "python": python,
        "numpy": (kind, _unpacked(keys, "<u4"), position, has_gauss, cached),
        "torch": _tensor(made["torch"]),
    }
    states.update({name: _tensor(made[name]) for name in ("mps", "xpu") if name in made})
    if "cuda" in made:
        states["cuda"] = [_tensor(state) for state in made["cuda"]]
    return states


def torch_packed(states: States) -> str:
    """torch's state on the CPU alone, as text."""
    return _packed(states["torch"].numpy())


def put_back_torch(text: str) -> None:
    """Let torch's generator on the CPU continue from a state of `torch_packed`."""
    torch.set_rng_state(_tensor(text))


def _packed(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _unpacked(text: str, dtype: str) -> Any:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype).copy()


def _tensor(text: str) -> torch.Tensor:
    return torch.from_numpy(_unpacked(text, "u1"))
