"""State files: bit-exact, readable by others, whole or absent, and honest about what they are not."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kohya_ext.ema import Shadow, checkpoint, constant, debiased

State = dict[str, Any]


def make(seed: int = 0, **options: Any) -> tuple[nn.Module, Shadow]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Conv2d(2, 3, 3))
    shadow = Shadow(model.named_parameters(), options.pop("schedule", debiased(0.99)), **options)
    return model, shadow


def train(model: nn.Module, shadow: Shadow, steps: range) -> None:
    """Real steps whose weights depend on the step alone, so that any part can be run again."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        shadow.capture()
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        shadow.update()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("schedule", [debiased(0.99), constant(0.99)], ids=lambda schedule: schedule.name)
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, every: int, dtype: torch.dtype, schedule: Any) -> None:
    options = {"update_every": every, "dtype": dtype, "stochastic": dtype == torch.bfloat16, "schedule": schedule}
    model, whole = make(**options)
    train(model, whole, range(20))

    model, first = make(**options)
    train(model, first, range(7))
    checkpoint.save(tmp_path / checkpoint.FILE_NAME, first.state_dict())
    model, second = make(seed=9, **options)
    assert second.load_state_dict(checkpoint.load(tmp_path / checkpoint.FILE_NAME)) == []
    train(model, second, range(7, 20))

    assert (second.step, second.updates) == (whole.step, whole.updates)
    for (name, _, wanted), (_, _, got) in zip(whole.pairs(), second.pairs(), strict=True):
        assert torch.equal(wanted, got), name


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    model, shadow = make()
    train(model, shadow, range(2))
    checkpoint.save(tmp_path / "ema.safetensors", shadow.state_dict())
    loaded = load_file(tmp_path / "ema.safetensors")
    assert set(loaded) == {name for name, _ in model.named_parameters()}
    for name, _, average in shadow.pairs():
        assert torch.equal(loaded[name], average)


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shadow = make()
    train(model, shadow, range(2))
    path = tmp_path / "ema.safetensors"
    checkpoint.save(path, shadow.state_dict())
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    train(model, shadow, range(3))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, shadow.state_dict())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_ema_state_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(2)}, foreign)
    with pytest.raises(ValueError, match="not an EMA state"):
        checkpoint.load(foreign)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x10\0\0\0\0\0\0\0 not json at all")
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(damaged)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("settings", ["", "[]", "3", "{", "[" * 100_000, "NaN", '"x"'])
def test_damaged_settings_are_named_with_the_file(tmp_path: Path, settings: str) -> None:
    path = tmp_path / "state.safetensors"
    save_file({"a": torch.ones(2)}, path, {"kohya_ext_ema": settings})
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        checkpoint.load(path)


def test_a_state_of_another_model_is_refused_and_changes_nothing() -> None:
    model, shadow = make()
    train(model, shadow, range(2))
    before = {name: average.clone() for name, _, average in shadow.pairs()}
    state = shadow.state_dict()
    renamed = {**state, "shadow": {f"x.{name}": tensor for name, tensor in state["shadow"].items()}}
    reshaped = {**state, "shadow": {name: tensor.unsqueeze(0) for name, tensor in state["shadow"].items()}}
    for wrong, message in ((renamed, "missing"), (reshaped, "shape"), ({**state, "format": 99}, "format 99")):
        with pytest.raises(ValueError, match=message):
            shadow.load_state_dict(wrong)
    assert shadow.step == 2
    assert all(torch.equal(before[name], average) for name, _, average in shadow.pairs())


def test_changed_settings_are_named() -> None:
    model, shadow = make(schedule=debiased(0.9))
    train(model, shadow, range(4))
    _, other = make(schedule=constant(0.9), update_every=2)
    notes = other.load_state_dict(shadow.state_dict())
    assert len(notes) == 2
    assert "schedule" in notes[0]
    assert "update_every" in notes[1]
    assert (other.step, other.updates) == (4, 2)


def with_weight(state: State, value: float) -> State:
    weights = state["shadow"]["0.weight"].clone()
    weights.view(-1)[-1] = value
    return {**state, "shadow": {**state["shadow"], "0.weight": weights}}


def with_shadow(state: State, **tensors: Any) -> State:
    return {**state, "shadow": {**state["shadow"], "0.weight": tensors["weight"]}}


def with_key(key: str, value: object, state: State) -> State:
    return {**state, key: value}


def without_key(key: str, state: State) -> State:
    return {name: value for name, value in state.items() if name != key}


DAMAGES: dict[str, tuple[Callable[[State], State], str]] = {
    "NaN": (lambda s: with_weight(s, math.nan), "'0.weight' holds NaN"),
    "infinite": (lambda s: with_weight(s, -math.inf), "'0.weight' holds NaN or infinite"),
    "integers": (lambda s: with_shadow(s, weight=torch.ones(5, 6, dtype=torch.int64)), "'0.weight' is torch.int64"),
    "complex": (lambda s: with_shadow(s, weight=torch.ones(5, 6) * 1j), "'0.weight' is torch.complex64"),
    "sparse": (lambda s: with_shadow(s, weight=torch.ones(5, 6).to_sparse()), "'0.weight' is .*sparse"),
    "no tensor": (lambda s: with_shadow(s, weight=[1.0]), "'0.weight' is not a tensor"),
    "no weights": (lambda s: {**s, "shadow": None}, "'shadow'"),
    "updates beyond steps": (lambda s: {**s, "updates": 9}, "9 updates in 2 steps"),
    **{
        f"{key} {value!r}": (partial(with_key, key, value), f"{key} is {re.escape(repr(value))}")
        for key in ("step", "updates", "update_every")
        for value in (-1, 10**30, 1.5, "2", None, True, math.nan)
    },
    **{f"no {key}": (partial(without_key, key), f"no '{key}'") for key in ("step", "updates", "update_every")},
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
@pytest.mark.parametrize("begun", [False, True])
def test_a_damaged_state_is_named_and_changes_nothing(damage: str, begun: bool) -> None:
    """Neither the EMA nor the weights: training goes on as the twin's, which has seen no such state."""
    source, saved = make(seed=3)
    train(source, saved, range(2))
    (model, shadow), (other, twin) = make(), make()
    if begun:
        train(model, shadow, range(3))
        train(other, twin, range(3))
    spoil, message = DAMAGES[damage]
    with pytest.raises(ValueError, match=message):
        shadow.load_state_dict(spoil(saved.state_dict()))
    for _ in range(2):
        assert (shadow.step, shadow.updates) == (twin.step, twin.updates)
        assert [name for name, _, _ in shadow.pairs()] == [name for name, _, _ in twin.pairs()]
        for (_, weights, average), (_, wanted_weights, wanted) in zip(shadow.pairs(), twin.pairs(), strict=True):
            assert torch.equal(weights, wanted_weights) and torch.equal(average, wanted)
        train(model, shadow, range(3, 5))
        train(other, twin, range(3, 5))


def test_huge_finite_averages_are_no_damage() -> None:
    model, shadow = make()
    train(model, shadow, range(2))
    state = shadow.state_dict()
    state["shadow"]["0.weight"] = torch.full((5, 6), 3e38)
    assert shadow.load_state_dict(state) == []
