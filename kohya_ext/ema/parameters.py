"""What can be averaged, and in which dtype."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kohya_ext.tensors.elements import repeats


def named(params: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters by their names, or by their places; one that occurs twice counts once.

    Raises:
        ValueError: two of one name.
        TypeError: one that is not dense and real, or whose elements share memory.
    """
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for number, item in enumerate(params):
        name, parameter = item if isinstance(item, tuple) else (str(number), item)
        if id(parameter) in seen:
            continue
        if name in named:
            raise ValueError(f"two parameters are called {name!r}")
        if not (parameter.is_floating_point() and parameter.layout == torch.strided):
            raise TypeError(
                f"parameter {name!r} is {parameter.dtype}, {parameter.layout}: only dense real weights are averaged"
            )
        if repeats(parameter):
            raise TypeError(f"parameter {name!r} is an expanded view, whose elements share memory: use a clone of it")
        seen.add(id(parameter))
        named[name] = parameter
    return named


def check_dtype(dtype: torch.dtype, stochastic: bool) -> None:
    """Raises ValueError for a dtype in which an average would stand still."""
    if dtype in (torch.float32, torch.float64):
        if stochastic:
            raise ValueError(f"stochastic rounding is for a bfloat16 shadow, not {dtype}")
        return
    if dtype == torch.bfloat16 and stochastic:
        return
    fix = "use float32, or bfloat16 with stochastic rounding" if dtype == torch.bfloat16 else "use float32"
    raise ValueError(
        f"a {dtype} shadow with rounding to nearest does not move: at a decay of 0.9995 an update is less than half "
        f"of its last digit; {fix}"
    )
