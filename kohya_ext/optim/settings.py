"""The arguments of AdaCoor, checked. Numbers and True/False only: quotes do not survive every GUI's command line."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim.functional import Rule, to_bfloat16
from kohya_ext.tensors.elements import repeats

STATE_BITS = (8, 16, 32)
_NUMBERS = ("lr", "eps", "weight_decay", "vt_rate", "momentum")
_SWITCHES = ("auto_lr", "stochastic_state", "stochastic_weights", "maximize")
_CHOICES = ("foreach", "fused")
_numbers = operator.itemgetter(*_NUMBERS)
_others = operator.itemgetter("state_bits", "seed", *_SWITCHES, *_CHOICES)


def check(group: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError, with the name of the argument, for settings that cannot be honoured."""
    for name in _NUMBERS:
        _check_number(name, group[name])
    if group["eps"] <= 0 or to_bfloat16(float(group["eps"])) <= 0:
        raise ValueError(f"eps must be above 0, got {group['eps']!r}: it is the first step's size and the divisor")
    if group["momentum"] >= 1:
        raise ValueError(f"momentum must be below 1, got {group['momentum']!r}: it is the share that each step keeps")
    for name in _SWITCHES:
        if not isinstance(group[name], bool):
            raise TypeError(f"{name} must be True or False, got {group[name]!r}")
    for name in _CHOICES:
        if group[name] is not None and not isinstance(group[name], bool):
            raise TypeError(f"{name} must be True, False or None, got {group[name]!r}")
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach and fused cannot both be True: each names a way to compute the step")
    if isinstance(group["state_bits"], bool) or group["state_bits"] not in STATE_BITS:
        raise ValueError(f"state_bits must be 8, 16 or 32, got {group['state_bits']!r}")
    if isinstance(group["seed"], bool) or not isinstance(group["seed"], int):
        raise TypeError(f"seed must be a whole number, got {group['seed']!r}")
    if group["stochastic_state"] and group["state_bits"] == 32:
        raise ValueError("stochastic_state is for 16 bits; with state_bits=32 nothing is rounded away")


def check_parameters(group: Mapping[str, Any], first_index: int) -> None:
    """Raise TypeError for parameters AdaCoor cannot train, saying which and why."""
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
            raise TypeError(f"AdaCoor cannot train {name}: several elements share memory; train a clone")


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


def _check_number(name: str, value: Any) -> None:
    number = isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool)
    if isinstance(value, Tensor):  # torch's optimizers take one for `lr`
        number = value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
    if not number:
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def _describe(parameter: Tensor, index: int, group: Mapping[str, Any]) -> str:
    names = group.get("param_names")
    name = f" {names[index]!r}" if names and index < len(names) else ""
    return f"parameter {index}{name} ({parameter.dtype}, shape {tuple(parameter.shape)})"
