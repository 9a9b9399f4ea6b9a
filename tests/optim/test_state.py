"""State: every dtype and bit survives, other widths are converted aloud, published states are read."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from kohya_ext.optim import AdaCoor, blockwise
from tests.optim.reference import decades


def make(dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[nn.Parameter, AdaCoor]:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(40, 25, generator=generator).to(dtype))
    return parameter, AdaCoor([parameter], **settings)


def train(parameter: nn.Parameter, optimizer: AdaCoor, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        parameter.grad = decades(tuple(parameter.shape), generator, -5, -3).to(parameter.dtype)
        optimizer.step()


def sums(parameter: nn.Parameter, optimizer: AdaCoor) -> torch.Tensor:
    """The sum of squared gradients that a state of any width stands for."""
    state = optimizer.state[parameter]
    if state["vt"].dtype == torch.uint8:
        return blockwise.decode(state["vt"], state["scale"]).double().view(parameter.shape)
    return state["vt"].double() / (optimizer.param_groups[0]["eps"] if state["vt"].dtype == torch.bfloat16 else 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_round_trip_keeps_every_dtype_and_bit(dtype: torch.dtype, bits: int) -> None:
    parameter, optimizer = make(dtype, state_bits=bits)
    train(parameter, optimizer, 3)
    twin, loaded = make(dtype, state_bits=bits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    wanted = {8: torch.uint8, 16: torch.bfloat16, 32: torch.float32}[bits]
    assert loaded.state[twin]["vt"].dtype == (torch.float64 if dtype == torch.float64 else wanted)
    assert loaded.state[twin].keys() == optimizer.state[parameter].keys()
    for name, value in optimizer.state[parameter].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(loaded.state[twin][name])), name


def test_loading_does_not_share_memory() -> None:
    parameter, optimizer = make()
    train(parameter, optimizer, 1)
    state = optimizer.state_dict()
    twin, loaded = make()
    loaded.load_state_dict(state)
    train(twin, loaded, 2)
    assert optimizer.state[parameter]["step"] == 1
    assert not torch.equal(optimizer.state[parameter]["vt"], loaded.state[twin]["vt"])


@pytest.mark.parametrize("before", [8, 16, 32])
@pytest.mark.parametrize("after", [8, 16, 32])
def test_another_width_is_converted_and_said(before: int, after: int) -> None:
    parameter, optimizer = make(state_bits=before)
    train(parameter, optimizer, 5)
    twin, loaded = make(state_bits=after)
    if before == after:
        return
    with pytest.warns(UserWarning, match=f"1 parameters were converted to {after} bits"):
        loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["state_bits"] == after
    old, new = sums(parameter, optimizer), sums(twin, loaded)
    ratio = (new[old > 0] / old[old > 0]).sqrt()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(ratio.max()) < 2
    train(twin, loaded, 1)


def flat_codes(optimizer: AdaCoor) -> dict[str, Any]:
    """The state as it was saved before codes had the shape of the weights."""
    state = copy.deepcopy(optimizer.state_dict())
    for entries in state["state"].values():
        entries["vt"] = entries["vt"].view(-1)
    for group in state["param_groups"]:
        group["code_book"] = 2
    return state


def old_codes(optimizer: AdaCoor) -> dict[str, Any]:
    """The state as kohya_ext 0.2 would have saved it, with the first code book."""
    state = flat_codes(optimizer)
    book = blockwise.code_book(torch.device("cpu"), 1)
    for entries in state["state"].values():
        share = blockwise.code_book(torch.device("cpu"))[entries["vt"].int()]
        entries["vt"] = torch.bucketize(share, book).clamp(1, 255).to(torch.uint8)
    for group in state["param_groups"]:
        del group["code_book"]
    return state


def test_a_state_of_the_first_code_book_is_converted_and_said() -> None:
    parameter, optimizer = make(state_bits=8)
    train(parameter, optimizer, 20)
    old = old_codes(optimizer)
    wanted = blockwise.decode(old["state"][0]["vt"], old["state"][0]["scale"], 1)
    twin, loaded = make(state_bits=8)
    with pytest.warns(UserWarning, match="converted to 8 bits"):
        loaded.load_state_dict(old)
    assert float((sums(twin, loaded).view(-1) / wanted).mean()) == pytest.approx(1.0, abs=0.02)
    assert loaded.param_groups[0]["code_book"] == blockwise.BOOK
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(state_bits=8)[1].load_state_dict(loaded.state_dict())
    old["param_groups"][0]["code_book"] = blockwise.BOOK + 1
    with pytest.raises(ValueError, match="newer kohya_ext"):
        loaded.load_state_dict(old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flat_codes_are_read_to_the_last_bit(dtype: torch.dtype) -> None:
    parameter, optimizer = make(dtype, state_bits=8, momentum=0.9, auto_lr=True)
    train(parameter, optimizer, 5)
    twin, loaded = make(dtype, state_bits=8, momentum=0.9, auto_lr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.load_state_dict(flat_codes(optimizer))
    unpickled = copy.deepcopy(optimizer)
    [third] = unpickled.param_groups[0]["params"]
    unpickled.state[third]["vt"] = unpickled.state[third]["vt"].view(-1)
    unpickled.param_groups[0]["code_book"] = 2
    unpickled = pickle.loads(pickle.dumps(unpickled))
    [third] = unpickled.param_groups[0]["params"]
    for state in (loaded.state[twin], unpickled.state[third]):
        assert state["vt"].shape == twin.shape
        assert all(
            torch.equal(torch.as_tensor(state[name]), torch.as_tensor(value))
            for name, value in optimizer.state[parameter].items()
        )
    train(third, unpickled, 1)


def test_an_unpickled_optimizer_of_the_first_code_book_is_converted() -> None:
    parameter, optimizer = make(state_bits=8)
    train(parameter, optimizer, 20)
    old = old_codes(optimizer)["state"][0]
    wanted = blockwise.decode(old["vt"], old["scale"], 1)
    assert old["vt"].dim() == 1
    optimizer.state[parameter].update(old)
    del optimizer.param_groups[0]["code_book"], optimizer.param_groups[0]["auto_lr"]
    twin = copy.deepcopy(optimizer)
    [parameter] = twin.param_groups[0]["params"]
    assert float((sums(parameter, twin).view(-1) / wanted).mean()) == pytest.approx(1.0, abs=0.02)
    train(parameter, twin, 1)


def published_state(dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor]:
    vt = (torch.rand(40, 25, generator=torch.Generator().manual_seed(1)) * 1e-14).to(torch.bfloat16)
    group = {"lr": 1e-4, "eps": 1e-8, "initial_lr": 1e-4, "params": [0]}
    return {"state": {0: {"vt": vt.to(dtype)}}, "param_groups": [group]}, vt


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_published_state_is_read(dtype: torch.dtype) -> None:
    """Also one that torch has cast to float32 in a resume. Its ignored `lr` must not begin to count."""
    state, vt = published_state(dtype)
    parameter, optimizer = make(lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if dtype == torch.bfloat16 else "ignore")
        optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[parameter]["vt"], vt)
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["initial_lr"] == 1e-4
    train(parameter, optimizer, 1)


def test_a_published_state_is_divided_by_eps_for_32_bits() -> None:
    state, vt = published_state(torch.bfloat16)
    parameter, optimizer = make(state_bits=32)
    with pytest.warns(UserWarning, match="converted"):
        optimizer.load_state_dict(state)
    torch.testing.assert_close(optimizer.state[parameter]["vt"], vt.float() / 1e-8)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_published_state_is_read_with_its_own_eps(bits: int) -> None:
    """That of this object counts from then on; the sums stay what they were."""
    state, vt = published_state(torch.bfloat16)
    parameter, optimizer = make(eps=1e-6, state_bits=bits)
    with pytest.warns(UserWarning, match="converted"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["eps"] == 1e-6
    wanted = vt.double() / 1e-8
    ratio = sums(parameter, optimizer)[wanted > 0] / wanted[wanted > 0]
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.01)


def test_settings_of_a_state_are_taken_over_as_torch_does() -> None:
    parameter, optimizer = make(lr=0.5, weight_decay=0.1, stochastic_state=True)
    train(parameter, optimizer, 1)
    _, loaded = make(foreach=True)
    said = (
        "continues with weight_decay=0.1, stochastic_state=True, .* not with weight_decay=0.0, stochastic_state=False;"
    )
    with pytest.warns(UserWarning, match=said):
        loaded.load_state_dict(optimizer.state_dict())
    group = loaded.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["stochastic_state"], group["foreach"]) == (0.5, 0.1, True, True)


@pytest.mark.parametrize("before", [{}, {"auto_lr": True}, {"momentum": 0.5}], ids=str)
@pytest.mark.parametrize("after", [{}, {"auto_lr": True, "momentum": 0.9}], ids=str)
def test_what_a_resumed_run_was_given_in_vain_is_said(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The state goes on as it was saved; nothing else would be the same run."""
    parameter, saved = make(**before)
    train(parameter, saved, 2)
    _, resumed = make(lr=0.3, foreach=True, **after)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        resumed.load_state_dict(saved.state_dict())
        resumed.load_state_dict(saved.state_dict())  # said once: by now they are its own
    assert resumed.state_dict()["state"][0].keys() == saved.state_dict()["state"][0].keys()
    names = ("auto_lr", "momentum")
    group, wanted = resumed.param_groups[0], saved.param_groups[0]
    assert [group[name] for name in names] == [wanted[name] for name in names]
    old, new = ({"auto_lr": False, "momentum": 0.0, **given} for given in (before, after))
    different = [name for name in names if old[name] != new[name]]
    assert len(said) == bool(different)
    for name in different:
        words = str(said[0].message).partition(", not with ")
        assert f"{name}={old[name]}" in words[0] and f"{name}={new[name]}" in words[2]


def test_a_momentum_that_a_scheduler_moves_is_not_said() -> None:
    def made() -> tuple[nn.Parameter, AdaCoor, torch.optim.lr_scheduler.OneCycleLR]:
        parameter, optimizer = make(momentum=0.9)
        return parameter, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)

    parameter, optimizer, scheduler = made()
    for _ in range(3):
        train(parameter, optimizer, 1)
        scheduler.step()
    _, resumed, _ = made()
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["momentum"] == optimizer.param_groups[0]["momentum"] < 0.95


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_a_scheduler_gives_no_momentum_to_an_optimizer_without_it(scheduler: str) -> None:
    """It would set one of .95, and the published form would be another from the first step on."""
    settings = {"OneCycleLR": {"max_lr": 1.0, "total_steps": 10}, "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0}}
    made = getattr(torch.optim.lr_scheduler, scheduler)
    _, optimizer = make()
    for one in (optimizer, copy.deepcopy(optimizer)):
        with pytest.raises(ValueError, match="cycle_momentum"):
            made(one, **settings[scheduler])
        assert one.param_groups[0]["momentum"] == 0
        made(one, cycle_momentum=False, **settings[scheduler])
        assert one.param_groups[0]["momentum"] == 0
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert optimizer.param_groups[1]["momentum"] == 0
    _, optimizer = make(momentum=0.9)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert optimizer.param_groups[1]["momentum"] == 0.9
    made(optimizer, **settings[scheduler])  # one that is there may be cycled


def test_states_that_do_not_fit_are_refused() -> None:
    _, optimizer = make()
    adam = {"state": {0: {"exp_avg": torch.ones(40, 25)}}, "param_groups": [{"lr": 1, "params": [0]}]}
    with pytest.raises(ValueError, match=r"not an AdaCoor state.*exp_avg"):
        optimizer.load_state_dict(adam)
    state, _ = published_state(torch.bfloat16)
    state["state"][0]["vt"] = torch.ones(3)
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_an_empty_state_loads_before_the_first_step() -> None:
    """accelerate does this when it prepares an optimizer."""
    parameter, optimizer = make()
    optimizer.load_state_dict(optimizer.state_dict())
    train(parameter, optimizer, 1)
    assert optimizer.state[parameter]["step"] == 1


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch 2.3 has the scaler for CPUs first")
def test_it_works_under_a_scaler_and_a_scheduler() -> None:
    parameter, optimizer = make()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    start = parameter.detach().clone()
    for fault in (False, True, False):
        optimizer.zero_grad()
        loss = (parameter**2).sum() * (float("inf") if fault else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert optimizer.state[parameter]["step"] == 2
    assert torch.isfinite(parameter).all()
    assert not torch.equal(parameter, start)
    assert optimizer.param_groups[0]["lr"] == 1.0
