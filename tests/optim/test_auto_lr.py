"""`auto_lr` and `momentum`: the slow twins' results, on every path; what the distance counts, and what bounds it."""

from __future__ import annotations

import copy
import itertools
import shutil
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kohya_ext.optim import AdaCoor, distance
from tests.optim.reference import Found, decades

BOTH: list[dict[str, Any]] = [{"auto_lr": True}, {"auto_lr": True, "momentum": 0.9}]
WIDTHS: list[dict[str, Any]] = [{}, {"stochastic_state": True}, {"state_bits": 32}, {"state_bits": 8}]
SHAPES = [(), (3,), (257,), (40, 30), (9000,), (4, 3, 3, 3)]


def params_of(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], seed: int, low: float = -5, high: float = -2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        # a common direction and noise, so that distances grow
        noise = decades(tuple(parameter.shape), generator, low, high)
        parameter.grad = (noise + 10.0**high).to(parameter.dtype)


def factors(optimizer: AdaCoor) -> list[float]:
    return [float(state["factor"]) for state in optimizer.state.values()]


def everything(optimizer: AdaCoor) -> list[Tensor]:
    """Weights and state, in order."""
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found += [parameter.detach(), *(torch.as_tensor(v) for v in optimizer.state[parameter].values())]
    return found


def assert_same_bits(first: AdaCoor, second: AdaCoor) -> None:
    for left, right in zip(everything(first), everything(second), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("settings", [*BOTH, {"auto_lr": True, "eps": 1e-12, "vt_rate": 0.5, "weight_decay": 10.0}])
def test_float64_weights_follow_the_definition(settings: dict[str, Any]) -> None:
    params = params_of([(), (257,), (40, 30)], torch.float64)
    numbers = {name: value for name, value in settings.items() if name != "auto_lr"}
    twins = [Found(parameter.detach(), **numbers) for parameter in params]
    optimizer = AdaCoor(params, **settings)
    for step in range(300):
        set_gradients(params, step)
        optimizer.param_groups[0]["lr"] = lr = 2.0 / (1 + step % 3)
        optimizer.step()
        for parameter, twin in zip(params, twins, strict=True):
            assert parameter.grad is not None
            twin.step(parameter.grad, lr)
    for parameter, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(parameter.detach(), twin.weights, rtol=1e-9, atol=1e-12)
        assert float(optimizer.state[parameter]["factor"]) == pytest.approx(twin.square / twin.eps, rel=1e-9)
        assert twin.square > 100 * twin.eps


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_every_width_follows_the_definition_as_closely_as_it_can(
    settings: dict[str, Any], width: dict[str, Any]
) -> None:
    params = params_of([(40, 50)])
    twin = Found(params[0].detach(), momentum=settings.get("momentum", 0.0))
    start = params[0].detach().double()
    optimizer = AdaCoor(params, **settings, **width)
    for step in range(60):
        set_gradients(params, step)
        optimizer.step()
        assert params[0].grad is not None
        twin.step(params[0].grad)
    way, wanted = params[0].detach().double() - start, twin.weights - start
    tolerance = 1e-4 if width.get("state_bits") == 32 else 0.1
    assert float((way - wanted).norm() / wanted.norm()) < tolerance
    assert factors(optimizer)[0] == pytest.approx(twin.square / twin.eps, rel=2 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_paths_give_the_same_bits(settings: dict[str, Any], width: dict[str, Any], dtype: torch.dtype) -> None:
    """Gathered, one after the other, and each by itself as in a fused backward pass."""
    made = [
        AdaCoor([{"params": params[:3]}, {"params": params[3:], "lr": 0.5}], foreach=foreach, **settings, **width)
        for params, foreach in ((params_of(SHAPES, dtype), foreach) for foreach in (False, True, False))
    ]
    for step in range(6):
        for optimizer in made:
            for group in optimizer.param_groups:
                set_gradients(group["params"], step)
                if step == 3:
                    group["params"][-1].grad.view(-1)[0] = float("nan")
        made[0].step()
        made[1].step()
        for group in made[2].param_groups:
            for parameter in reversed(group["params"]):
                made[2].step_param(parameter)
    assert_same_bits(made[0], made[2])
    if dtype == torch.float64 or width.get("state_bits") == 32:  # torch's root may differ in its last bit
        for left, right in zip(everything(made[0]), everything(made[1]), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-8)
    else:
        assert_same_bits(made[0], made[1])
    assert max(factors(made[0])) > 1.3


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 1), reason="torch 2.0 cannot compile this, and AdaCoor says so")
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS[:3], ids=str)
@pytest.mark.parametrize("settings", [*BOTH, {"momentum": 0.9}], ids=str)
def test_compiled_steps_give_the_same_bits(settings: dict[str, Any], width: dict[str, Any], dtype: torch.dtype) -> None:
    shapes = [*SHAPES, (4099,), (700, 50), (70, 80)]
    compiled = AdaCoor(params_of(shapes, dtype), fused=True, **settings, **width)
    eager = AdaCoor(params_of(shapes, dtype), fused=False, **settings, **width)
    for step in range(10):
        for optimizer in (compiled, eager):
            set_gradients(optimizer.param_groups[0]["params"], step)
            optimizer.param_groups[0]["params"][4].grad[7] = float("inf")
            optimizer.step()
    tolerance = 1e-5 if width.get("state_bits") == 32 else 0.0
    for left, right in zip(everything(compiled), everything(eager), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * 1e-3)
    assert compiled.skipped == eager.skipped == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_a_resume_is_bit_identical(width: dict[str, Any], dtype: torch.dtype) -> None:
    whole, first, second = (AdaCoor(params_of(SHAPES, dtype), auto_lr=True, momentum=0.9, **width) for _ in range(3))

    def train(optimizer: AdaCoor, steps: range) -> None:
        for step in steps:
            set_gradients(optimizer.param_groups[0]["params"], step)
            optimizer.step()

    train(whole, range(8))
    train(first, range(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        for target, source in zip(second.param_groups[0]["params"], first.param_groups[0]["params"], strict=True):
            target.copy_(source)
    train(second, range(4, 8))
    assert_same_bits(whole, second)


def test_a_state_without_a_distance_is_resumed_from_the_first_guess() -> None:
    old = AdaCoor(params_of(SHAPES))
    set_gradients(old.param_groups[0]["params"], 0)
    old.step()
    state = old.state_dict()
    for group in state["param_groups"]:  # as versions without these settings have saved it
        del group["auto_lr"], group["momentum"]
    new = AdaCoor(params_of(SHAPES), auto_lr=True, momentum=0.9)
    new.load_state_dict(state)
    set_gradients(new.param_groups[0]["params"], 1)
    new.step()
    assert all(state["step"] == 2 and {"moved", "momentum"} <= state.keys() for state in new.state.values())
    assert set(old.state[old.param_groups[0]["params"][1]]) == {"step", "vt"}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("moved", lambda value: value[:5]),
        ("moved", lambda value: value * float("nan")),
        ("moved", lambda value: None),
        ("factor", lambda value: value * 0),
        ("factor", lambda value: 3.0),
        ("factor", lambda value: value * 0 + 3e38),
        ("moved", lambda value: value * 0 + 1e30),
        ("moved", lambda value: value.bfloat16()),
        ("walk", lambda value: -1 - value),
        ("walk", lambda value: value.view(1)),
        ("walk", lambda value: value.half()),
        ("factor", lambda value: value.bfloat16()),
        ("momentum", lambda value: value.view(-1)),
        ("momentum", lambda value: value.half()),
        ("momentum", lambda value: value.to_sparse()),
        ("momentum", lambda value: value.to("meta")),
        ("momentum", lambda value: value + float("inf")),
    ],
)
def test_a_damaged_state_is_refused_by_name(name: str, damage: Any) -> None:
    optimizer = AdaCoor(params_of([(40, 30)]), auto_lr=True, momentum=0.9)
    set_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0][name] = damage(state["state"][0][name])
    with pytest.raises(ValueError, match=f"parameter 0.*'{name}'"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_unusable_gradients_leave_everything_as_it_was(
    settings: dict[str, Any], width: dict[str, Any], fault: float
) -> None:
    optimizer = AdaCoor(params_of([(600,), (9000,)]), **settings, **width)
    params = optimizer.param_groups[0]["params"]
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    before = copy.deepcopy(everything(optimizer))
    for parameter in params:
        parameter.grad = torch.full_like(parameter, fault)
    optimizer.step()
    for left, right in zip(before, everything(optimizer), strict=True):
        assert torch.equal(left, right) or left + 1 == right  # the count of steps
    assert optimizer.skipped_steps == 1


def test_the_distance_grows_by_no_more_than_its_bound_and_never_shrinks() -> None:
    """Also at a rate of 1,000, and for gradients that all point one way."""
    for lr in (1.0, 1000.0):
        optimizer = AdaCoor(params_of([(50,)]), lr=lr, auto_lr=True)
        found = [1.0]
        for _ in range(20):
            optimizer.param_groups[0]["params"][0].grad = torch.ones(50)
            optimizer.step()
            found += factors(optimizer)
        growth = [after / before for before, after in itertools.pairwise(found)]
        assert min(growth) >= 1.0
        assert max(growth) <= distance.FASTEST * (1 + 1e-6)
        assert found[-1] > 1000


@pytest.mark.parametrize("eps", [1e-12, 1e-8])
def test_momentum_finds_the_distance_about_as_fast_as_none(eps: float) -> None:
    """The way is 0.01, on which gradients turn once it has been gone; from a guess of 1e-6 it is thirteen doublings."""
    needed = []
    for momentum in (0.0, 0.9):
        parameter = nn.Parameter(torch.zeros(50))
        optimizer = AdaCoor([parameter], eps=eps, auto_lr=True, momentum=momentum, state_bits=32)
        for step in range(1, 400):
            parameter.grad = parameter.detach() - 0.01
            optimizer.step()
            if float(parameter.detach().mean()) > 0.009:
                needed.append(step)
                break
    assert len(needed) == 2
    assert needed[1] < 1.5 * needed[0]


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_noise_alone_carries_weights_away_as_steps_of_one_length_do(settings: dict[str, Any], size: float) -> None:
    """Gradients without any direction: the squared distance grows with the number of steps, at any rate."""
    for lr in (1.0, 3.0):
        optimizer = AdaCoor(params_of([(3000,)]), lr=lr, **settings)
        [parameter] = optimizer.param_groups[0]["params"]
        found = []
        for step in range(800):
            parameter.grad = size * torch.randn(3000, generator=torch.Generator().manual_seed(step))
            optimizer.step()
            found += factors(optimizer)
        assert found[799] < 200
        assert found[799] / found[199] < 8


@pytest.mark.parametrize("numel", [1, 16, 256])
@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_noise_does_not_carry_a_few_weights_away_by_luck(settings: dict[str, Any], numel: int) -> None:
    """Of 24 small tensors without any direction, as many do as of large ones; the luckiest may go ten times as far."""
    optimizer = AdaCoor(params_of([(numel,)] * 24), **settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(800):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(numel, generator=generator)
        optimizer.step()
    found = sorted(factors(optimizer))
    assert found[12] < 200
    assert found[-1] < 200 * 10**2


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 1e-6])
@pytest.mark.parametrize("settings", BOTH, ids=str)
def test_the_size_of_gradients_is_no_matter(settings: dict[str, Any], eps: float) -> None:
    """Clipping makes small gradients of those of a large model; the way is found in as many steps, or one more."""
    found = []
    for size in (1e-2, 1e-5, 1e-7):
        optimizer = AdaCoor([nn.Parameter(torch.zeros(600))], state_bits=32, eps=eps, **settings)
        [parameter] = optimizer.param_groups[0]["params"]
        for step in range(40):
            noise = torch.randn(600, generator=torch.Generator().manual_seed(step))
            parameter.grad = size * (0.3 * noise + 1.0)
            optimizer.step()
        found += factors(optimizer)
    assert min(found) > 1e6
    assert max(found) < 3 * min(found)


@pytest.mark.parametrize("settings", BOTH, ids=str)
@pytest.mark.parametrize("bits", [16, 8])
def test_bfloat16_weights_start_and_their_rounding_is_no_distance(settings: dict[str, Any], bits: int) -> None:
    """Weights of 1 have steps of 0.008, the first guess is 1e-4; gradients are noise and a small common direction."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = nn.Parameter(torch.ones(3000, dtype=dtype))
        optimizer = AdaCoor([parameter], state_bits=bits, **settings)
        for step in range(100):
            noise = torch.randn(3000, generator=torch.Generator().manual_seed(step))
            parameter.grad = (1e-4 * (noise + 0.3)).to(dtype)
            optimizer.step()
        found.append((float((1 - parameter.detach().float()).mean()), factors(optimizer)[0]))
    (way, factor), (coarse_way, coarse_factor) = found
    assert factor > 100
    assert coarse_way == pytest.approx(way, rel=0.2)
    assert coarse_factor == pytest.approx(factor, rel=0.1)


def test_a_lora_whose_second_factor_starts_at_zero_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    target = 0.1 * torch.randn(20, 3, generator=generator) @ torch.randn(3, 30, generator=generator)
    down, up = nn.Parameter(torch.randn(3, 30, generator=generator) / 30**0.5), nn.Parameter(torch.zeros(20, 3))
    optimizer = AdaCoor([down, up], auto_lr=True, momentum=0.9)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (up @ down - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]


def test_frozen_weights_keep_their_distance_and_thawed_ones_go_on() -> None:
    optimizer = AdaCoor(params_of([(50,), (60,)]), auto_lr=True)
    first, second = optimizer.param_groups[0]["params"]
    before: tuple[Tensor, float] = (first, 0.0)
    for step in range(20):
        set_gradients([first, second], step)
        if 5 <= step < 15:
            first.grad = None
        if step == 5:
            before = (first.detach().clone(), float(optimizer.state[first]["factor"]))
        optimizer.step()
        if 5 <= step < 15:
            assert torch.equal(first, before[0])
            assert float(optimizer.state[first]["factor"]) == before[1]
    assert optimizer.state[first]["step"] == 10
    assert float(optimizer.state[first]["factor"]) > before[1]


def test_a_rate_of_zero_moves_nothing_and_finds_nothing() -> None:
    """As in the first step of a warm-up."""
    optimizer = AdaCoor(params_of([(50,)]), lr=0.0, auto_lr=True, momentum=0.9)
    start = optimizer.param_groups[0]["params"][0].detach().clone()
    for step in range(3):
        set_gradients(optimizer.param_groups[0]["params"], step)
        optimizer.step()
    assert torch.equal(optimizer.param_groups[0]["params"][0], start)
    assert factors(optimizer) == [1.0]


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 2.05),
        ({"state_bits": 8}, 1.06),
        ({"momentum": 0.9}, 4.05),
        ({"state_bits": 8, "momentum": 0.9}, 3.06),
    ],
    ids=str,
)
def test_bytes_a_weight(settings: dict[str, Any], most: float) -> None:
    optimizer = AdaCoor(
        [nn.Parameter(torch.ones(1280, 1280)), nn.Parameter(torch.ones(1280))], auto_lr=True, **settings
    )
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert taken / (1280 * 1281) < most


@pytest.mark.parametrize("numel", [4097, 9000, 131072, 500000, 600011, 2_200_000, 14_745_600])
def test_the_sample_is_one_run_of_each_stratum(numel: int) -> None:
    runs = distance._runs(numel, torch.device("cpu"))
    each = distance._strata(numel)
    assert torch.equal(runs // each, torch.arange(len(runs)))
    assert int(runs.max()) < numel // distance.RUN
    assert distance.sampled(numel) == len(runs) * distance.RUN
    assert distance.sampled(numel) >= min(4096, numel // 2)
    assert distance.sampled(numel) <= 8192 + 1024
    if each > 1:  # spread over the stratum
        assert float((runs % each).float().mean()) == pytest.approx((each - 1) / 2, rel=0.2)


@pytest.mark.parametrize("bits", [16, 8, 32])
def test_the_distance_of_a_sample_is_that_of_all(bits: int) -> None:
    optimizer = AdaCoor([nn.Parameter(torch.zeros(300, 1000))], auto_lr=True, state_bits=bits)
    parameter = optimizer.param_groups[0]["params"][0]
    walk, furthest = 0.0, 0.0
    for step in range(60):
        noise = torch.randn(300, 1000, generator=torch.Generator().manual_seed(step))
        before = parameter.detach().clone()
        parameter.grad = before - 0.01 + 1e-3 * noise
        optimizer.step()
        walk += float((parameter.detach() - before).square().mean())
        furthest = max(furthest, float(parameter.detach().square().mean()) - walk / 2)
    assert optimizer.state[parameter]["moved"].numel() < 300_000 / 30
    assert factors(optimizer)[0] * 1e-8 == pytest.approx(furthest, rel=0.1)
    assert furthest > 1e-5


def test_the_sample_of_a_large_tensor_finds_its_distance_where_rows_differ() -> None:
    """Rows move by amounts that differ by a factor of ten, and only every second row moves at all."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.exp(0.5 * torch.randn(3000, 1, generator=generator)) * (torch.arange(3000)[:, None] % 2)
    moved = rows * torch.randn(3000, 1000, generator=generator)
    sample = distance._sample(moved.view(-1))
    assert len(sample) < 20_000
    assert float(sample.square().mean().sqrt()) == pytest.approx(float(moved.square().mean().sqrt()), rel=0.1)


def test_new_arguments_are_checked() -> None:
    for settings, error in (
        ({"auto_lr": 1}, TypeError),
        ({"momentum": 1.0}, ValueError),
        ({"momentum": -0.1}, ValueError),
        ({"momentum": "0.9"}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(settings))):
            AdaCoor(params_of([(3,)]), **settings)
