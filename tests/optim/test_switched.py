"""Settings that change between two steps: what the group says now decides, on every path alike."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kohya_ext.optim import AdaCoor
from tests.optim.test_auto_lr import assert_same_bits, everything, params_of, set_gradients

SHAPES = [(600,), (3,), (20, 30), (4, 3, 3, 3), (5000,)]
BOTH: dict[str, Any] = {"auto_lr": True, "momentum": 0.9}
WIDTHS: list[dict[str, Any]] = [{}, {"state_bits": 32}, {"state_bits": 8}]
# Each setting, before and after.
SWITCHED: list[tuple[str, Any, Any]] = [
    ("momentum", 0.9, 0.0),
    ("auto_lr", True, False),
    ("lr", 1.0, 0.25),
    ("eps", 1e-8, 1e-6),
    ("weight_decay", 0.0, 10.0),
    ("vt_rate", 1.0, 0.5),
    ("stochastic_state", False, True),
    ("stochastic_weights", True, False),
    ("seed", 0, 7),
    ("maximize", False, True),
]


def strided(parameter: nn.Parameter) -> nn.Parameter:
    """The same weights, in an order of memory of their own."""
    data = parameter.detach()
    return nn.Parameter(data.t().contiguous().t() if data.dim() == 2 else data)


def train(optimizer: AdaCoor, name: str, values: tuple[Any, ...], by_itself: bool = False) -> None:
    """Three steps at each of the values in turn."""
    params = optimizer.param_groups[0]["params"]
    for number, value in enumerate(values):
        optimizer.param_groups[0][name] = value
        for step in range(3):
            set_gradients(params, 3 * number + step)
            for parameter in params:  # in the order of its weights, as a backward pass leaves it
                gradient = parameter.grad
                assert gradient is not None
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            if not by_itself:
                optimizer.step()
            for parameter in reversed(params) if by_itself else ():
                optimizer.step_param(parameter)


def made(width: dict[str, Any], dtype: torch.dtype, **settings: Any) -> AdaCoor:
    return AdaCoor([strided(one) for one in params_of(SHAPES, dtype)], **{**BOTH, **width, **settings})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize(("name", "first", "second"), SWITCHED, ids=[row[0] for row in SWITCHED])
def test_what_a_group_says_now_decides_on_every_path(
    name: str, first: Any, second: Any, width: dict[str, Any], dtype: torch.dtype
) -> None:
    if width.get("state_bits") == 32 and name == "stochastic_state":
        pytest.skip("not for 32 bits")
    plain, gathered, alone = (made(width, dtype, foreach=foreach) for foreach in (False, True, False))
    for optimizer in (plain, gathered, alone):
        train(optimizer, name, (first, second, first), by_itself=optimizer is alone)
    assert_same_bits(plain, alone)
    if width.get("state_bits") == 32:  # torch's root may differ in its last bit
        for left, right in zip(everything(plain), everything(gathered), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-7)
    else:
        assert_same_bits(plain, gathered)


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("off", [{"momentum": 0.0}, {"auto_lr": False}, {"momentum": 0.0, "auto_lr": False}], ids=str)
@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_what_is_switched_off_counts_for_nothing(
    width: dict[str, Any], off: dict[str, Any], path: dict[str, Any]
) -> None:
    """As if the state had never had it."""

    def step(forgotten: bool) -> list[Tensor]:
        optimizer = made(width, torch.float32, **path)
        train(optimizer, "lr", (1.0,))
        optimizer.param_groups[0].update(off)
        for state in optimizer.state.values():
            for name in (*(("momentum",) * ("momentum" in off)), *(("moved", "factor") * ("auto_lr" in off))):
                assert forgotten is False or state.pop(name) is not None
        train(optimizer, "lr", (1.0,))
        return [parameter.detach() for parameter in optimizer.param_groups[0]["params"]]

    assert all(torch.equal(one, other) for one, other in zip(step(False), step(True), strict=True))


@pytest.mark.parametrize("path", [{}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", float("nan")), ("lr", -2.0), ("eps", 0.0), ("momentum", 1.5), ("auto_lr", "no"), ("state_bits", 4)],
)
def test_what_the_constructor_refuses_is_refused_later_too(
    name: str, value: Any, by_itself: bool, path: dict[str, Any]
) -> None:
    """By the second group, before the first has been stepped."""
    params = params_of(SHAPES, torch.float32)
    optimizer = AdaCoor([{"params": params[:2]}, {"params": params[2:]}], **BOTH, **path)
    set_gradients(params, 0)
    optimizer.step()
    before = [one.clone() for one in everything(optimizer)]
    optimizer.param_groups[1][name] = value
    with pytest.raises((TypeError, ValueError), match=f"group 1: {name} must be"):
        optimizer.step_param(params[3]) if by_itself else optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(before, everything(optimizer), strict=True))


@pytest.mark.parametrize("before", [8, 16, 32])
@pytest.mark.parametrize("after", [8, 16, 32])
def test_another_width_is_refused_between_steps(before: int, after: int) -> None:
    """The accumulators would keep theirs, and a saved state be refused, or read as what it is not."""
    params = params_of(SHAPES, torch.float32)
    optimizer = AdaCoor(params, state_bits=before, **BOTH)
    optimizer.param_groups[0]["state_bits"] = before
    set_gradients(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["state_bits"] = after
    for one in (optimizer, copy.deepcopy(optimizer)):
        set_gradients(one.param_groups[0]["params"], 1)
        if before == after:
            one.step()
            continue
        with pytest.raises(ValueError, match=f"state_bits of group 0 is {after} now.*load the state_dict"):
            one.step()


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 1), reason="torch 2.0 cannot compile this, and AdaCoor says so")
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize(("name", "first", "second"), SWITCHED[:2], ids=[row[0] for row in SWITCHED[:2]])
def test_compiled_steps_listen_too(name: str, first: Any, second: Any, width: dict[str, Any]) -> None:
    plain, compiled = (made(width, torch.bfloat16, fused=fused) for fused in (False, True))
    for optimizer in (plain, compiled):
        train(optimizer, name, (first, second, first))
    tolerance = 1e-5 if width.get("state_bits") == 32 else 0.0
    for left, right in zip(everything(plain), everything(compiled), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * 1e-3)
