"""Steps in place whose sum is rounded at random, next to the formula: the same bits, whatever the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kohya_ext.optim import AdaCoor, blockwise, quick_random
from tests.optim.reference import Formula, decades

SETTINGS: list[dict[str, Any]] = [
    {"stochastic_state": True},
    {"stochastic_state": True, "lr": 0.3, "weight_decay": 10.0, "vt_rate": 0.5, "maximize": True, "seed": 7},
    {"auto_lr": True},
    {"state_bits": 8},
    {"state_bits": 8, "lr": 0.3, "weight_decay": 10.0, "vt_rate": 0.5, "maximize": True, "seed": 7},
    {"state_bits": 8, "auto_lr": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("numel", [256 * 20, 256 * 20 + 37, 200])
@pytest.mark.parametrize("zeros", [True, False])
def test_steps_in_place_have_the_bits_of_the_formula(
    settings: dict[str, Any], numel: int, zeros: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    original = quick_random.step_

    def counted(*given: Any) -> int:
        done.append(original(*given))
        return done[-1]

    monkeypatch.setattr(quick_random, "step_", counted)
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(numel, generator=generator))
    optimizer, formula = AdaCoor([parameter], **settings), Formula(parameter, **settings)
    for step in range(12):
        gradient = decades((numel,), generator, -22 if step < 4 else -9, 3)
        gradient[::7] = 0.0 if zeros and step < 6 else 1e-20  # sums that begin late, next to large ones
        if step % 5 == 3:
            gradient[3], gradient[-1] = float("nan"), 1e30
        parameter.grad = gradient
        optimizer.step()
        formula.step(gradient, 0, (0,))
    state = optimizer.state[parameter]
    assert torch.equal(parameter, formula.weights)
    assert all(torch.equal(state[name], value) for name, value in formula.state.items() if name != "step")
    full = numel // 256 * 256 if settings.get("state_bits") == 8 else numel
    assert done.count(full) == (12 if full == 0 else 10)
    assert optimizer.skipped == formula.skipped == 4


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"auto_lr": True, "momentum": 0.9}], ids=str)
def test_momentum_is_left_to_the_formula(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_random, "step_", None)
    parameter = nn.Parameter(torch.ones(600))
    parameter.grad = torch.full((600,), 1e-3)
    AdaCoor([parameter], state_bits=8, **settings).step()
    assert not torch.equal(parameter, torch.ones(600))


def test_codes_anywhere_in_memory_have_the_bits_of_the_formula() -> None:
    """From an odd address on, no two of them can be read as one number."""
    parameter = nn.Parameter(torch.ones(1024))
    optimizer, formula = AdaCoor([parameter], state_bits=8), Formula(parameter, state_bits=8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        parameter.grad = 1e-3 * torch.randn(1024, generator=generator)
        optimizer.step()
        formula.step(parameter.grad, 0, (0,))
        state = optimizer.state[parameter]
        state["vt"] = torch.cat([torch.zeros(1, dtype=torch.uint8), state["vt"]])[1:]
    assert torch.equal(parameter, formula.weights)
    assert torch.equal(state["vt"], formula.state["vt"])


def test_sums_beyond_float32_are_held_as_the_largest() -> None:
    """And those that follow have a scale, and a value, that are finite."""
    parameter = nn.Parameter(torch.ones(512))
    optimizer = AdaCoor([parameter], state_bits=8)
    for _ in range(3):
        parameter.grad = torch.full((512,), 1.8e19)
        parameter.grad[256:] = 1e-3
        optimizer.step()
    state = optimizer.state[parameter]
    assert torch.isfinite(blockwise.decode(state["vt"], state["scale"])).all()
    assert (state["vt"] > 0).all()
    assert torch.isfinite(parameter).all()
