"""The EMA's state: as a file (safetensors keyed by parameter name, the rest as JSON in its header), and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kohya_ext.tensors.elements import is_sharded, local, slice_size, slices
from kohya_ext.tensors.streaming import write_tensors

FILE_NAME = "kohya_ext_ema.safetensors"
_HEADER_KEY = "kohya_ext_ema"
# More steps than any run has; a number beyond is damage.
_MOST_STEPS = 1 << 40


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write an EMA's state. The file appears whole or not at all.

    Args:
        path: of the file.
        state: from `Shadow.state_dict()`.

    Raises:
        OSError: it cannot be written.
        RuntimeError: this process has only a part of it.
    """
    settings = {key: value for key, value in state.items() if key != "shadow"}
    shadows: Mapping[str, Tensor] = state["shadow"]
    if any(is_sharded(shadow) for shadow in shadows.values()):
        raise RuntimeError("this EMA is divided among processes: write it with `gathering.save`, on all of them")
    forms = {name: (shadow.dtype, tuple(shadow.shape)) for name, shadow in shadows.items()}
    save_streamed(path, settings, forms, shadows.values())


def save_streamed(
    path: Path,
    settings: Mapping[str, Any],
    forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    shadows: Iterable[Tensor],
) -> None:
    """The same from tensors that are made one after the other.

    Args:
        path: of the file.
        settings: what a state holds besides the shadows.
        forms: name -> dtype and shape of each.
        shadows: in the same order.

    Raises:
        OSError: it cannot be written.
    """
    write_tensors(path, forms, shadows, {_HEADER_KEY: json.dumps(settings, sort_keys=True)})


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Returns:
        What `Shadow.load_state_dict` takes, all tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not an EMA state.
    """
    try:
        with safe_open(str(path), framework="pt") as opened:
            settings = (opened.metadata() or {}).get(_HEADER_KEY)
            if settings is None:
                raise ValueError(f"{path} is not an EMA state: its header has no entry {_HEADER_KEY!r}")
            shadow = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except ValueError:
        raise
    except Exception as error:  # safetensors has its own exception class, another one in old versions
        raise ValueError(f"{path} cannot be read as an EMA state: {error}") from error
    return {**_settings(path, settings), "shadow": shadow}


def counts(state: Mapping[str, Any]) -> tuple[int, int]:
    """(real steps, those of them that are averaged) of a saved state. Raises ValueError for what no run has counted."""
    for key, lowest in (("step", 0), ("updates", 0), ("update_every", 1)):
        count = state.get(key)
        if isinstance(count, bool) or not isinstance(count, int) or not lowest <= count <= _MOST_STEPS:
            found = f"{key} is {count!r}" if key in state else f"it has no {key!r}"
            raise ValueError(f"damaged EMA state: {found}, not a number of steps")
    if state["updates"] > state["step"]:
        raise ValueError(f"damaged EMA state: {state['updates']} updates in {state['step']} steps")
    return state["step"], state["updates"] * state["update_every"]


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The shadows of a saved state by name. Raises ValueError where they are missing or something else."""
    shadows = state.get("shadow")
    if not isinstance(shadows, dict):
        raise ValueError("damaged EMA state: it has no weights under 'shadow'")
    strange = [name for name, shadow in shadows.items() if not isinstance(shadow, Tensor)]
    if strange:
        raise ValueError(f"damaged EMA state: {strange[0]!r} is not a tensor")
    return shadows


def refuse_unusable(shadows: Mapping[str, Tensor]) -> None:
    """A value that is not finite would never leave the EMA again: updates keep such values out of it."""
    for name, shadow in shadows.items():
        if not (shadow.is_floating_point() and shadow.layout == torch.strided):
            raise ValueError(f"damaged EMA state: {name!r} is {shadow.dtype}, {shadow.layout}")
        flat = local(shadow).detach().reshape(-1)
        parts = (flat[start : start + length] for start, length in slices(flat.numel(), slice_size(flat.device)))
        # a finite sum has finite summands only; where it overflows, each is looked at
        if not all(math.isfinite(float(part.sum())) or bool(part.isfinite().all()) for part in parts):
            raise ValueError(f"damaged EMA state: {name!r} holds NaN or infinite values")


def _settings(path: Path, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: the settings in its header are not JSON") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: its header contains no settings")
    return settings
