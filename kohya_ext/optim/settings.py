"""The arguments of AdaCoor, checked. Numbers and True/False only: quotes do not survive every GUI's command line."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim.functional import Rule
from kohya_ext.spec import adacoor
from kohya_ext.tensors.elements import repeats

_numbers = operator.itemgetter(*adacoor.NUMBERS)
_others = operator.itemgetter("state_bits", "seed", *adacoor.SWITCHES, *adacoor.CHOICES)


def check(group: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError, with the name of the argument, for settings that cannot be honoured."""
    for fault in adacoor.faults({name: _plain(group[name]) for name in adacoor.DEFAULTS}):
        raise (TypeError if fault.wrong_type else ValueError)(fault.message)


def check_again(group: Mapping[str, Any], number: int) -> None:
    """The same for a group that something has changed between two steps: a scheduler, or the user."""
    lr = _plain(group["lr"])
    try:
        check({**group, "lr": 0.0} if isinstance(lr, float) and -1 < lr < 0 else group)  # schedulers end a hair below 0
    except (TypeError, ValueError) as error:
        raise type(error)(f"group {number}: {error}") from None


def make_plain(group: dict[str, Any]) -> None:
    """Have numpy's numbers be Python's: a saved state with others is refused by `torch.load(weights_only=True)`."""
    for name in adacoor.NUMBERS:
        if not isinstance(group[name], Tensor) and type(group[name]) not in (int, float):
            group[name] = float(group[name])


def check_parameters(group: Mapping[str, Any], first_index: int) -> None:
    """Raise TypeError or ValueError for parameters AdaCoor cannot train, saying which and why."""
    for index, parameter in enumerate(group["params"], start=first_index):
        name = _describe(parameter, index, group)
        if parameter.is_complex():
            raise TypeError(f"AdaCoor cannot train {name}: it is complex; train torch.view_as_real of it")
        if parameter.layout != torch.strided:
            raise TypeError(f"AdaCoor cannot train {name}: it is sparse")
        if not parameter.is_floating_point():
            raise TypeError(f"AdaCoor cannot train {name}: it contains integers")
        if parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"AdaCoor cannot train {name}: weights of this type are for storage only")
        if repeats(parameter):
            stride = tuple(parameter.stride())
            raise ValueError(
                f"AdaCoor cannot train {name}: by its stride {stride} elements share memory; train a clone"
            )


def values(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """All settings of a group, to tell later whether any has changed: `lr` may be a tensor, changed in place."""
    return (*map(float, _numbers(group)), *_others(group))


def rule_of(group: Mapping[str, Any]) -> Rule:
    """The group's settings as the step uses them. Schedulers may have set any number for `lr` meanwhile."""
    lr, eps = float(group["lr"]), float(group["eps"])
    return Rule(
        lr=lr,
        eps=eps,
        decay=1.0 - lr * math.sqrt(eps) * float(group["weight_decay"]),
        vt_rate=float(group["vt_rate"]),
        maximize=group["maximize"],
        state_bits=group["state_bits"],
        # with `auto_lr` there is no published trajectory to keep, and a sum that no longer grows makes steps too long
        stochastic_state=group["stochastic_state"] or (group["auto_lr"] and group["state_bits"] == 16),
        stochastic_weights=group["stochastic_weights"],
        seed=group["seed"],
        auto_lr=group["auto_lr"],
        momentum=float(group["momentum"]),
    )


def _plain(value: Any) -> Any:
    """The number in a tensor, as torch's optimizers take one for `lr`; anything else as it is."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool:
        return value.item()
    return value


def _describe(parameter: Tensor, index: int, group: Mapping[str, Any]) -> str:
    names = group.get("param_names")
    name = f" {names[index]!r}" if names and index < len(names) else ""
    return f"parameter {index}{name} ({parameter.dtype}, shape {tuple(parameter.shape)})"
