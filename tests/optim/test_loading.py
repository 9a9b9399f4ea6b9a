"""A refused state changes nothing, and says what is wrong; hooks run as those of torch's optimizers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kohya_ext.optim import AdaCoor
from tests.optim.reference import decades

State = dict[str, Any]
SHAPES = [(40, 25), (7,), ()]
needs_hooks = pytest.mark.skipif(
    not hasattr(torch.optim.Optimizer, "register_load_state_dict_pre_hook"), reason="torch has these hooks since 2.1"
)


def make(bits: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> AdaCoor:
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    return AdaCoor([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], state_bits=bits)


def parameters(optimizer: AdaCoor) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def train(optimizer: AdaCoor, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters(optimizer):
            parameter.grad = decades(tuple(parameter.shape), generator, -6, -2).to(parameter.dtype)
        optimizer.step()


def everything(optimizer: AdaCoor) -> Any:
    """All of an optimizer that a step depends on; tensors as bytes."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (str(value.dtype), tuple(value.shape), value.detach().reshape(-1).view(torch.uint8).tolist())
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, list) else value

    return plain([optimizer.state_dict(), optimizer.defaults, parameters(optimizer)])


def replaced(state: State, parameter: int, **entries: Any) -> State:
    """The state with other entries for one parameter; None removes one."""
    own = {**state["state"][parameter], **entries}
    kept = {key: value for key, value in own.items() if value is not None}
    return {**state, "state": {**state["state"], parameter: kept}}


def regrouped(state: State, group: int, **entries: Any) -> State:
    groups = [dict(one) for one in state["param_groups"]]
    groups[group].update(entries)
    return {**state, "param_groups": groups}


def spoiled(value: float) -> Callable[[State, int], State]:
    def spoil(state: State, place: int) -> State:
        name = "scale" if "scale" in state["state"][place] else "vt"
        tensor = state["state"][place][name].clone()
        tensor.view(-1)[-1] = value
        return replaced(state, place, **{name: tensor})

    return spoil


# what was done to the state of one parameter, and what the message must name
_OTHER = torch.ones(3, 2, dtype=torch.bfloat16)
DAMAGES: dict[str, tuple[Callable[[State, int], State], str]] = {
    "NaN": (spoiled(math.nan), "parameter {}.*NaN"),
    "infinite": (spoiled(math.inf), "parameter {}.*infinite"),
    "negative": (spoiled(-1e-9), "parameter {}.*negative"),
    "other shape": (lambda s, n: replaced(s, n, vt=_OTHER), "parameter {}.*shape"),
    "integers": (lambda s, n: replaced(s, n, vt=torch.ones(SHAPES[n], dtype=torch.int64)), "parameter {}.*int64"),
    "complex": (lambda s, n: replaced(s, n, vt=torch.ones(SHAPES[n]) * 1j), "parameter {}.*complex64"),
    "no tensor": (lambda s, n: replaced(s, n, vt=[1.0]), "parameter {}.*not an AdaCoor state"),
    "no vt": (lambda s, n: replaced(s, n, vt=None), "parameter {}.*'vt'"),
    "no step": (lambda s, n: replaced(s, n, step=None), "parameter {}.*'step' is missing"),
    "step below 0": (lambda s, n: replaced(s, n, step=-1), "parameter {}.*'step'.*-1"),
    "absurd step": (lambda s, n: replaced(s, n, step=10**30), "parameter {}.*'step'"),
    "step of NaN": (lambda s, n: replaced(s, n, step=math.nan), "parameter {}.*'step'.*nan"),
    "step of text": (lambda s, n: replaced(s, n, step="7"), "parameter {}.*'step'.*'7'"),
    "not a mapping": (lambda s, n: {**s, "state": {**s["state"], n: 7}}, "parameter {}.*not an AdaCoor state"),
    "Adam's": (
        lambda s, n: {**s, "state": {**s["state"], n: {"step": 1, "exp_avg": torch.ones(SHAPES[n])}}},
        "parameter {}.*not an AdaCoor state.*exp_avg",
    ),
    "nobody's": (lambda s, n: {**s, "state": {**s["state"], 99: s["state"][n]}}, "99"),
    "no groups": (lambda s, n: {"state": s["state"]}, "param_groups"),
    "no state": (lambda s, n: {"param_groups": s["param_groups"]}, "'state'"),
    "groups of text": (lambda s, n: {**s, "param_groups": "groups"}, "param_groups"),
    "state of a list": (lambda s, n: {**s, "state": [1]}, "'state'"),
    "a group less": (lambda s, n: {**s, "param_groups": s["param_groups"][:1]}, "1 parameter groups.* 2"),
    "no parameters": (lambda s, n: regrouped(s, 1, params=None), "group 1.*'params'"),
    "parameters too many": (lambda s, n: regrouped(s, 1, params=[2, 3]), "group 1.*2 parameters.*1"),
    "one twice": (lambda s, n: regrouped(s, 1, params=[0]), "twice"),
    "eps of 0": (lambda s, n: regrouped(s, 1, eps=0.0), "group 1.*eps"),
    "eps of text": (lambda s, n: regrouped(s, 0, eps="1e-8"), "group 0.*eps"),
    "lr of NaN": (lambda s, n: regrouped(s, 1, lr=math.nan), "group 1.*lr"),
    "absurd bits": (lambda s, n: regrouped(s, 0, state_bits=4), "group 0.*state_bits"),
    "absurd seed": (lambda s, n: regrouped(s, 0, seed=1.5), "group 0.*seed"),
    "not a state": (lambda s, n: [s], "list"),  # type: ignore[return-value, dict-item]
}  # fmt: skip


@settings(max_examples=60)
@given(
    damage=st.sampled_from(sorted(DAMAGES)),
    place=st.integers(0, len(SHAPES) - 1),
    bits=st.sampled_from([8, 16, 32]),
    saved_bits=st.sampled_from([8, 16, 32]),
    steps=st.integers(0, 2),
)
def test_a_refused_state_leaves_the_optimizer_as_it_was(
    damage: str, place: int, bits: int, saved_bits: int, steps: int
) -> None:
    saved = make(saved_bits, seed=1)
    train(saved, range(3))
    optimizer, twin = make(bits), make(bits)
    for one in (optimizer, twin):
        train(one, range(steps))
    spoil, message = DAMAGES[damage]
    before = everything(optimizer)
    with pytest.raises(ValueError, match=message.format(place)):
        optimizer.load_state_dict(spoil(saved.state_dict(), place))
    assert everything(optimizer) == before
    train(optimizer, range(5, 7))
    train(twin, range(5, 7))
    assert everything(optimizer) == everything(twin)


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_each_damage_is_named(damage: str) -> None:
    saved = make(seed=1)
    train(saved, range(2))
    spoil, message = DAMAGES[damage]
    with pytest.raises(ValueError, match=message.format(1)):
        make().load_state_dict(spoil(saved.state_dict(), 1))


@pytest.mark.parametrize(("bits", "cast"), [(8, torch.float32), (32, torch.bfloat16), (16, torch.uint8)], ids=str)
def test_an_accumulator_that_something_has_cast_is_refused(bits: int, cast: torch.dtype) -> None:
    """Read as what it is not, it would be off by 1 / eps, or hold codes for sums."""
    saved = make(bits, seed=1)
    train(saved, range(2))
    state = saved.state_dict()
    vt = state["state"][1]["vt"]
    with pytest.raises(ValueError, match=r"parameter 1.*something has cast it"):
        make(bits).load_state_dict(replaced(state, 1, vt=vt.to(cast)))


SHAPES_OF_600 = [(600,), (20, 30), (30, 20), (600, 1), (1, 600), (2, 3, 100)]


@pytest.mark.parametrize("extra", [{}, {"auto_lr": True, "momentum": 0.9}], ids=str)
@pytest.mark.parametrize("saved_bits", [8, 16, 32])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.filterwarnings("ignore:AdaCoor. the accumulators of")
def test_a_state_of_another_shape_is_refused(bits: int, saved_bits: int, extra: dict[str, Any]) -> None:
    """Also one of as many elements: codes are flat in memory, as is what `auto_lr` sums."""
    for shape in SHAPES_OF_600:
        source = nn.Parameter(torch.ones(shape))
        saved = AdaCoor([source], state_bits=saved_bits, **extra)
        train(saved, range(2))
        for other in SHAPES_OF_600:
            target = AdaCoor([nn.Parameter(torch.ones(other))], state_bits=bits, **extra)
            if other == shape:
                target.load_state_dict(saved.state_dict())
                continue
            with pytest.raises(ValueError, match=r"parameter 0 .*'vt' has shape .*another model"):
                target.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("settings", [{}, {"auto_lr": True, "momentum": 0.9}], ids=str)
def test_a_state_that_lost_digits_on_its_way_is_refused(bits: int, settings: dict[str, Any]) -> None:
    """As float16, sums of squares by eps are 0, and a step then as long as the gradient."""
    saved = AdaCoor([nn.Parameter(torch.ones(20, 30))], state_bits=bits, **settings)
    train(saved, range(2))
    state = saved.state_dict()
    for name, value in state["state"][0].items():
        if not isinstance(value, Tensor) or value.dtype == torch.uint8:
            continue
        optimizer = AdaCoor([nn.Parameter(torch.ones(20, 30))], state_bits=bits, **settings)
        with pytest.raises(ValueError, match=f"'{name}' is torch.float16"):
            optimizer.load_state_dict(replaced(state, 0, **{name: value.half()}))
        optimizer.load_state_dict(replaced(state, 0, **{name: value.double() if name != "vt" else value}))


@needs_hooks
@pytest.mark.skipif(torch.__version__ < (2, 6), reason="torch saves names since 2.6")
def test_parameters_in_another_order_are_refused_where_they_have_names() -> None:
    def named(*names: str) -> AdaCoor:
        return AdaCoor([(name, nn.Parameter(torch.ones(20, 30))) for name in names])

    saved = named("a", "b", "c")
    train(saved, range(2))
    with pytest.raises(ValueError, match=r"another order: 'b' where this optimizer has 'c'"):
        named("a", "c", "b").load_state_dict(saved.state_dict())
    for other in (named("a", "b", "c"), named("m.a", "m.b", "m.c")):  # as a wrapper names them
        other.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("name", ["auto_lr", "momentum"])
def test_what_was_switched_off_when_a_state_was_saved_is_still_there(name: str) -> None:
    """A run that switches it on again gets what an uninterrupted one does."""
    on: dict[str, Any] = {"auto_lr": True, "momentum": 0.9}
    whole = AdaCoor([nn.Parameter(torch.ones(20, 30))], **on)
    train(whole, range(3))
    whole.param_groups[0][name] = {"auto_lr": False, "momentum": 0.0}[name]
    train(whole, range(3, 5))
    resumed = copy.deepcopy(whole)
    resumed.load_state_dict(whole.state_dict())
    for one in (whole, resumed):
        one.param_groups[0][name] = on[name]
        train(one, range(5, 8))
    (state, _, weights), (other, _, others) = everything(whole), everything(resumed)
    assert state == other and weights == others


def test_codes_without_their_scales_are_refused() -> None:
    saved = make(8, seed=1)
    train(saved, range(2))
    wrong = torch.ones(4, dtype=torch.int32), torch.ones(4, dtype=torch.complex64), torch.ones(4).half()
    for scale, message in ((None, "missing"), (torch.ones(9), r"of shape \(9,\)"), *((one, "torch") for one in wrong)):
        with pytest.raises(ValueError, match=f"parameter 0.*'scale' is {message}"):
            make(8).load_state_dict(replaced(saved.state_dict(), 0, scale=scale))


def test_what_another_width_cannot_hold_is_refused() -> None:
    saved = make(16, seed=1)
    train(saved, range(2))
    huge = torch.full((7,), 1e38, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"parameter 1.*too large for 32 bits"):
        make(32).load_state_dict(replaced(saved.state_dict(), 1, vt=huge))


def test_a_rate_that_a_scheduler_left_below_zero_is_no_damage() -> None:
    saved = make(seed=1)
    train(saved, range(2))
    optimizer = make()
    optimizer.load_state_dict(regrouped(saved.state_dict(), 0, lr=-1e-24))
    assert optimizer.param_groups[0]["lr"] == -1e-24


@needs_hooks
def test_the_state_is_judged_as_the_hooks_have_made_it() -> None:
    """As torch does: first all hooks, in their order, then the load; a hook may change the state or return another."""
    saved = make(seed=1)
    train(saved, range(2))
    state = saved.state_dict()
    damaged = replaced(replaced(state, 0, step=None), 1, vt=None)
    optimizer = make()
    calls: list[str] = []

    def repair(own: torch.optim.Optimizer, given: State) -> State:
        calls.append("repair")
        assert own is optimizer and "vt" not in given["state"][1]
        return replaced(given, 1, vt=state["state"][1]["vt"])

    def repair_in_place(own: torch.optim.Optimizer, given: State) -> None:
        calls.append("in place")
        assert "vt" in given["state"][1]
        given["state"] = replaced(given, 0, step=2)["state"]

    def after(own: torch.optim.Optimizer) -> None:
        calls.append("after")
        assert isinstance(own, AdaCoor) and own.state[parameters(own)[0]]["step"] == 2

    handles = [
        optimizer.register_load_state_dict_pre_hook(repair),
        optimizer.register_load_state_dict_pre_hook(repair_in_place),
        optimizer.register_load_state_dict_post_hook(after),
    ]
    before = copy.deepcopy(damaged)
    optimizer.load_state_dict(damaged)
    assert calls == ["repair", "in place", "after"]
    assert damaged.keys() == before.keys() and "step" not in damaged["state"][0]
    assert torch.equal(optimizer.state[parameters(optimizer)[1]]["vt"], state["state"][1]["vt"])
    handles[0].remove()
    with pytest.raises(AssertionError):
        optimizer.load_state_dict(damaged)
    handles[1].remove()
    with pytest.raises(ValueError, match="'step' is missing"):
        optimizer.load_state_dict(damaged)
    assert calls == ["repair", "in place", "after", "in place"], "nothing is called after a refusal"


@needs_hooks
def test_a_hook_that_ruins_the_state_changes_nothing() -> None:
    saved, optimizer = make(seed=1), make()
    train(saved, range(2))
    train(optimizer, range(1))
    optimizer.register_load_state_dict_pre_hook(lambda _, given: {**given, "state": {0: {"exp_avg": torch.ones(2)}}})
    before = everything(optimizer)
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.load_state_dict(saved.state_dict())
    assert everything(optimizer) == before


@needs_hooks
def test_hooks_of_saving_run_too() -> None:
    optimizer = make()
    train(optimizer, range(1))
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("before"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": "ours"})
    assert optimizer.state_dict()["note"] == "ours"
    assert calls == ["before"]


def test_a_loaded_state_is_the_whole_state() -> None:
    """What the saved one does not hold is gone, as in torch: a parameter without an entry starts anew."""
    saved, optimizer = make(seed=1), make()
    train(saved, range(2))
    train(optimizer, range(3))
    state = saved.state_dict()
    del state["state"][1]
    optimizer.load_state_dict(state)
    assert list(optimizer.state) == [parameters(optimizer)[0], parameters(optimizer)[2]]
    train(optimizer, range(1))
    assert optimizer.state[parameters(optimizer)[1]]["step"] == 1
