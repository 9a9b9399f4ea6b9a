"""Reading a saved state: everything is checked and converted before anything of the optimizer is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim import accumulator, blockwise, distance, settings
from kohya_ext.spec import adacoor
from kohya_ext.tensors.elements import is_sharded, local

# Settings that stay those of the object. The rest continue as saved: schedulers have changed the rate, and a training
# that is resumed is to go on as it was.
_KEPT = ("state_bits", "foreach", "fused")
_SAID = tuple(name for name in adacoor.DEFAULTS if name not in ("lr", *_KEPT))
# A distance that no weights go: the root mean square of those themselves is seldom above 1.
_FARTHEST = 1e6
# What `auto_lr` keeps.
_DISTANCE = ("moved", "walk", "factor")
_WIDE = (torch.float32, torch.float64)
# More steps than any run has; a number beyond is damage.
_MOST_STEPS = 1 << 40


@dataclass(frozen=True)
class Entries:
    """The state of one parameter, in a wrapping that torch's `load_state_dict` does not look into and cast."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """groups, state: what `torch.optim.Optimizer.load_state_dict` is to be given. converted: to how many bits.

    replaced: settings of this object that gave way to other saved ones, as texts: ("auto_lr=True", "auto_lr=False").
    """

    groups: list[dict[str, Any]]
    state: dict[Any, Entries]
    converted: list[int]
    replaced: list[tuple[str, str]]


@torch.no_grad()
def read(state_dict: Any, own_groups: Sequence[Mapping[str, Any]]) -> Loaded:
    """What a `state_dict()` of this class or of the published AdaCoor holds, for an optimizer with these groups.

    Raises ValueError that names what does not fit: the group, the parameter, the entry.
    """
    saved_groups, saved_state = _parts(state_dict)
    keys = _keys(saved_groups, own_groups)
    unknown = [key for key in saved_state if key not in set(keys)]
    if unknown:
        raise ValueError(f"a damaged state: it has entries for parameters that are in no group: {unknown[:5]}")
    _check_names(saved_groups, own_groups)
    groups = [_merge(saved, own) for saved, own in zip(saved_groups, own_groups, strict=True)]
    for number, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        _check_settings(group, saved, number)
        settings.make_plain(group)
    state: dict[Any, Entries] = {}
    converted: list[int] = []
    parameters = [(member, group) for group in range(len(groups)) for member in own_groups[group]["params"]]
    for index, (key, (parameter, number)) in enumerate(zip(keys, parameters, strict=True)):
        entries = saved_state.get(key)
        if not entries:
            continue
        try:
            step = _step_of(entries, saved_groups[number])
            own, other_width = _accumulator(entries, saved_groups[number], parameter, groups[number])
            own.update(_company(entries, saved_groups[number].get("state_bits"), parameter, groups[number]))
        except ValueError as error:
            raise ValueError(f"state of parameter {index} (shape {tuple(parameter.shape)}): {error}") from None
        state[key] = Entries({"step": step, **own})
        converted += [groups[number]["state_bits"]] if other_width else []
    return Loaded(groups, state, converted, _replaced(groups, own_groups))


def _parts(state_dict: Any) -> tuple[list[Mapping[str, Any]], Mapping[Any, Any]]:
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"not the state of an optimizer: a {type(state_dict).__name__}")
    missing = [key for key in ("param_groups", "state") if key not in state_dict]
    if missing:
        raise ValueError(f"not the state of an optimizer: it has no {' and no '.join(map(repr, missing))}")
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, Sequence) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError("a damaged state: 'param_groups' is not a list of groups")
    if not isinstance(state, Mapping):
        raise ValueError("a damaged state: 'state' is not a mapping from parameters to their entries")
    return list(groups), state


def _keys(saved_groups: Sequence[Mapping[str, Any]], own_groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The keys of all parameters in order, when the groups have the sizes of ours."""
    if len(saved_groups) != len(own_groups):
        raise ValueError(f"the state has {len(saved_groups)} parameter groups, this optimizer {len(own_groups)}")
    keys: list[Any] = []
    for number, (saved, own) in enumerate(zip(saved_groups, own_groups, strict=True)):
        members = saved.get("params")
        if not isinstance(members, Sequence) or not all(isinstance(key, (int, str)) for key in members):
            raise ValueError(f"a damaged state: group {number} has no list of its parameters under 'params'")
        if len(members) != len(own["params"]):
            raise ValueError(
                f"group {number} of the state has {len(members)} parameters, that of this optimizer "
                f"{len(own['params'])}: the state of another model, or of other trained parts of it"
            )
        keys += members
    if len(set(keys)) != len(keys):
        raise ValueError("a damaged state: one parameter is in its groups twice")
    return keys


def _check_names(saved_groups: Sequence[Mapping[str, Any]], own_groups: Sequence[Mapping[str, Any]]) -> None:
    """Where both know the names of all parameters, that the order is the same: entries go by it, not by the names."""
    saved, own = (
        [name for group in groups for name in group.get("param_names") or ()] for groups in (saved_groups, own_groups)
    )
    if saved != own and sorted(map(str, saved)) == sorted(map(str, own)):
        saved_name, name = next(pair for pair in zip(saved, own, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"the state has the same parameters in another order: {saved_name!r} where this optimizer has {name!r}"
        )


def _merge(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to continue with: the saved ones, except what belongs to this object or differs in meaning."""
    kept = (*_KEPT, "code_book") if "state_bits" in saved else tuple(key for key in own if key != "params")
    return {**own, **saved, **{key: own[key] for key in kept}, "params": saved["params"]}


def _replaced(groups: Sequence[Mapping[str, Any]], own_groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}  # in order, each once
    for group, own in zip(groups, own_groups, strict=True):
        cycled = "max_momentum" in group  # by a scheduler, as it does with the rate
        for name in _SAID:
            if group[name] != own[name] and not (cycled and name == adacoor.MOMENTUM):
                found[f"{name}={own[name]}", f"{name}={group[name]}"] = None
    return list(found)


def _check_settings(group: Mapping[str, Any], saved: Mapping[str, Any], number: int) -> None:
    try:
        settings.check_again(group, number)
        settings.check_again({**group, "eps": saved.get("eps", group["eps"])}, number)
        if saved.get("state_bits", 16) not in adacoor.STATE_BITS:
            raise ValueError(f"group {number}: state_bits must be 8, 16 or 32, got {saved['state_bits']!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"a damaged state: {error}") from None


def _step_of(entries: Any, saved_group: Mapping[str, Any]) -> int:
    if not isinstance(entries, Mapping):
        raise ValueError(f"not an AdaCoor state: a {type(entries).__name__}")
    if "state_bits" not in saved_group and "step" not in entries:  # the published optimizer counts no steps
        return 0
    if "vt" in entries and "step" not in entries:
        raise ValueError("'step' is missing")
    step = entries.get("step", 0)
    if isinstance(step, Tensor) and step.numel() == 1:
        step = step.item()
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step <= _MOST_STEPS or step % 1:
        raise ValueError(f"'step' is not a number of steps: {step!r}")
    return int(step)


def _accumulator(
    entries: Mapping[str, Any], saved_group: Mapping[str, Any], parameter: Tensor, own: Mapping[str, Any]
) -> tuple[dict[str, Tensor], bool]:
    saved_bits = saved_group.get("state_bits")
    book = saved_group.get("code_book", 1)
    if saved_bits == 8 and book not in range(1, blockwise.BOOK + 1):
        raise ValueError(f"its 8-bit codes are of code book {book!r}: saved by a newer kohya_ext; upgrade this one")
    _check_tensors(entries, saved_bits, parameter, book)
    eps = float(own["eps"])
    saved_eps = float(saved_group.get("eps", eps))
    vt, converted = accumulator.adopt(entries, saved_bits, saved_eps, parameter, own["state_bits"], eps, book)
    if not all(_in_range(tensor) for tensor in vt.values()):
        raise ValueError(f"'vt' is too large for {own['state_bits']} bits")
    return vt, converted


def _company(
    entries: Mapping[str, Any], saved_bits: int | None, parameter: Tensor, own: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What `auto_lr` and `momentum` keep, where the state has it; a step makes afresh what it lacks.

    Also where the setting is off: it may be switched on again.
    """
    wanted: dict[str, Tensor] = {}
    if not entries.keys().isdisjoint(_DISTANCE):
        wanted.update(distance.fresh(parameter))
    if "momentum" in entries:
        wanted["momentum"] = accumulator.fresh_momentum(parameter, own["state_bits"])
    for name, tensor in wanted.items():
        saved = entries.get(name)
        if not isinstance(saved, Tensor) or not saved.is_floating_point() or saved.shape != tensor.shape:
            found = f"{saved.dtype}, of shape {tuple(saved.shape)}" if isinstance(saved, Tensor) else repr(saved)
            raise ValueError(f"{name!r} is {found}, expected {tuple(tensor.shape)}: the state of another model")
        halves_lose = name in _DISTANCE or saved_bits == 32
        _check_kind(name, saved, tensor, _WIDE if halves_lose else (torch.bfloat16, *_WIDE))
        if not _is_plausible(name, saved, own):
            raise ValueError(f"{name!r} holds numbers that it cannot have: infinite, NaN or far from any distance")
        tensor.copy_(saved)
    return wanted


def _check_kind(name: str, saved: Tensor, own: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """That a tensor is dense, sharded or not as this optimizer's is, and of a dtype that holds what was in it."""
    if saved.layout != torch.strided or saved.is_meta:
        raise ValueError(f"{name!r} is {saved.layout}, on {saved.device}: expected a dense tensor with contents")
    if is_sharded(saved) != is_sharded(own):
        how = ("a whole tensor", "a sharded one")
        raise ValueError(f"{name!r} is {how[is_sharded(saved)]}, of weights that are {how[is_sharded(own)]} here")
    if saved.dtype not in dtypes:
        raise ValueError(f"{name!r} is {saved.dtype}: something has cast it")


def _is_plausible(name: str, saved: Tensor, own: Mapping[str, Any]) -> bool:
    if name == "factor":
        return 1 <= float(saved) <= max(1.0, _FARTHEST**2 / float(own["eps"]))
    if name == "walk":
        return 0 <= float(saved) < math.inf
    # a distance whose square is beyond the dtype would never count again
    return bool(torch.isfinite(local(saved).square().sum() if name == "moved" else local(saved)).all())


def _check_tensors(entries: Mapping[str, Any], saved_bits: int | None, parameter: Tensor, book: int) -> None:
    """That there is an accumulator of this parameter, of the width its group says, and of numbers it can hold."""
    vt, scale = entries.get("vt"), entries.get("scale")
    if not isinstance(vt, Tensor):
        raise ValueError(f"not an AdaCoor state: it has no tensor 'vt', but {sorted(map(str, entries))}")
    coded = vt.dtype == torch.uint8
    if not (coded or vt.is_floating_point()):
        raise ValueError(f"'vt' is {vt.dtype}, {vt.layout}: not an accumulator")
    if not accumulator.fits(vt, parameter, book):
        raise ValueError(f"'vt' has shape {tuple(vt.shape)}: the state of another model")
    if coded != (saved_bits == 8 and vt.dtype != torch.float64) or (saved_bits == 32 and vt.dtype not in _WIDE):
        said = "that of the published AdaCoor" if saved_bits is None else f"of {saved_bits} bits"
        raise ValueError(f"'vt' is {vt.dtype}, but the state {said}: something has cast it")
    dtypes = (torch.uint8, torch.bfloat16, *_WIDE)
    # torch casts the published optimizer's to the weights' dtype; with float16 weights it goes on with what that leaves
    _check_kind("vt", vt, local(parameter) if coded else parameter, dtypes if saved_bits else (torch.float16, *dtypes))
    if not coded and scale is not None:
        raise ValueError(f"'vt' is {vt.dtype}, but has a 'scale': something has cast it")
    if coded and not (isinstance(scale, Tensor) and scale.shape == (blockwise.blocks_of(vt.numel()),)):
        found = "missing" if not isinstance(scale, Tensor) else f"of shape {tuple(scale.shape)}"
        raise ValueError(f"'scale' is {found}; 8 bits need one for each block of 'vt'")
    if isinstance(scale, Tensor):  # powers of two, which bfloat16 holds; float16 does not
        _check_kind("scale", scale, local(parameter), (torch.bfloat16, *_WIDE))
    for name, tensor in (("vt", vt), ("scale", scale)):
        if isinstance(tensor, Tensor) and not _in_range(tensor):
            raise ValueError(f"'{name}' holds numbers that no sum of squares can be: negative, infinite or NaN")


def _in_range(tensor: Tensor) -> bool:
    """Whether every element is finite and at least 0."""
    if tensor.dtype == torch.uint8 or not tensor.numel():
        return True
    part = local(tensor)
    if not part.numel():
        return True
    low, high = torch.aminmax(part)
    return float(low) >= 0 and float(high) < math.inf
