"""Stochastic rounding: unbiased, and the same bits wherever, however and whenever a step is computed."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from kohya_ext.optim import AdaCoor, blockwise
from kohya_ext.tensors import elements
from kohya_ext.tensors.rounding import (
    as_bfloat16,
    as_bfloat16_by_bits,
    element_indices,
    keys_of_lanes,
    random_words,
    round_stochastically,
    stream_key,
    upper_halves,
)
from tests.optim.reference import Exact, decades

MODES: list[dict[str, Any]] = [
    {},
    {"stochastic_state": True},
    {"state_bits": 32},
    {"state_bits": 8},
    {"stochastic_weights": False},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def params_of(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(3000,), (7, 9), (1,)]]


def train(params: list[nn.Parameter], optimizer: AdaCoor, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in params:
            parameter.grad = decades(tuple(parameter.shape), generator, -6, -2).to(parameter.dtype)
        optimizer.step()


def same(first: AdaCoor, second: AdaCoor) -> bool:
    pairs = zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True)
    return all(
        torch.equal(a, b)
        and all(torch.equal(torch.as_tensor(v), torch.as_tensor(second.state[b][k])) for k, v in first.state[a].items())
        for a, b in pairs
    )


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_slicing_and_batching_leave_the_bits_alone(
    mode: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers = []
    for slice_size, settings in ((1 << 18, {}), (256, {}), (1 << 18, {"foreach": True}), (512, {"foreach": True})):
        monkeypatch.setattr(elements, "CPU_SLICE", slice_size)
        params = params_of(dtype)
        # torch's own Adagrad kernel rounds differently
        optimizer = AdaCoor(params, fused=False, **mode, **settings)
        train(params, optimizer, range(6))
        optimizers.append(optimizer)
    assert all(same(optimizers[0], other) for other in optimizers[1:])


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_resumed_run_has_the_same_bits(mode: dict[str, Any], dtype: torch.dtype, tmp_path: Any) -> None:
    params = params_of(dtype)
    whole = AdaCoor(params, **mode)
    train(params, whole, range(20))
    params = params_of(dtype)
    first = AdaCoor(params, **mode)
    train(params, first, range(7))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in params]
    second = AdaCoor(resumed, **mode)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(resumed, second, range(7, 20))
    assert same(whole, second)


def test_the_seed_the_step_and_the_parameter_change_the_bits() -> None:
    keys = {stream_key(seed, step, index) for seed in (0, 1, 2**40) for step in range(30) for index in range(30)}
    assert len(keys) == 3 * 30 * 30
    results = []
    for seed in (0, 0, 1):
        params = params_of(torch.bfloat16)
        train(params, AdaCoor(params, seed=seed), range(3))
        results.append(params[0].detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_random_words_by_rows_and_lanes_are_those_of_the_elements() -> None:
    cpu = torch.device("cpu")
    rows = (1 << 25) - 2 + torch.arange(5, dtype=torch.int32)  # up to beyond 2**31 elements
    by_lanes = random_words(7 + keys_of_lanes(64, cpu), 64 * rows[:, None])
    assert torch.equal(by_lanes.flatten(), random_words(7, element_indices(64 * ((1 << 25) - 2), 320, cpu)))


@pytest.mark.parametrize("start", [0, 1000, (1 << 31) - 50, (1 << 32) - 50, 5 << 31])
def test_upper_halves_are_those_of_the_random_words(start: int) -> None:
    cpu, key = torch.device("cpu"), stream_key(5, 3, 2)
    word, spare = torch.empty(2, 300, dtype=torch.int32).unbind()
    halves = upper_halves(key, start, keys_of_lanes(300, cpu), word, spare)
    elements = element_indices(start, 300, cpu)
    assert torch.equal(halves, random_words(key, elements) >> 16 & 0xFFFF)
    assert torch.equal(halves, random_words(key, elements, upper=True) >> 16 & 0xFFFF)


def test_the_random_words_are_uniform_and_uncorrelated() -> None:
    first = random_words(stream_key(0, 1, 0), element_indices(0, 1 << 18, torch.device("cpu")))
    second = random_words(stream_key(0, 2, 0), element_indices(0, 1 << 18, torch.device("cpu")))
    for word in (first, first >> 16, first.roll(1) ^ first, first ^ second):
        low = (word & 0xFFFF).double() / 65536
        assert abs(low.mean() - 0.5) < 0.003
        assert abs(low.var() - 1 / 12) < 0.001
        counts = torch.histc(low, 64, 0, 1)
        assert ((counts - 4096) ** 2 / 4096).sum() < 120  # chi-squared with 63 degrees of freedom
        for bit in range(16):
            assert abs(((word >> bit) & 1).double().mean() - 0.5) < 0.005


def test_indices_wrap_where_tensors_are_larger_than_an_int32() -> None:
    start = (1 << 31) - 3
    wanted = torch.arange(start, start + 6).to(torch.int32)
    assert torch.equal(element_indices(start, 6, torch.device("cpu")), wanted)
    assert torch.equal(element_indices((1 << 32) - 2, 4, torch.device("cpu")), torch.tensor([-2, -1, 0, 1]).int())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [1.0037, -0.33333, 3.1e-6, 1e-7, 2.0**-14 * 1.001, 60000.0, 0.0, -5e-8])
def test_rounding_keeps_the_mean(dtype: torch.dtype, value: float) -> None:
    count = 1 << 18
    values = torch.full((count,), value)
    words = random_words(stream_key(3, 1, 4), element_indices(0, count, values.device))
    rounded = round_stochastically(values, words, dtype).double()
    steps = torch.unique(rounded)
    assert len(steps) <= 2
    gap = float(steps.max() - steps.min())
    assert abs(float(rounded.mean()) - float(values[0].double())) <= 0.01 * gap
    assert steps.min() <= float(values[0].double()) <= steps.max()


def test_the_nearest_bfloat16_is_found_by_integers_too() -> None:
    """Random bits, every tie, the largest and the smallest; what is finite stays finite or becomes infinite alike."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 18,), generator=generator).to(torch.int32)
    ties = torch.arange(1 << 16, dtype=torch.int32) * 65536 + 0x8000
    for values in (bits.view(torch.float32), ties.view(torch.float32)):
        finite = values[values.isfinite()]
        assert torch.equal(as_bfloat16_by_bits(finite).view(torch.int32), as_bfloat16(finite).view(torch.int32))


LONG = pytest.param(100_000, 10_000, 0.35, marks=pytest.mark.slow)


@pytest.mark.parametrize(("count", "steps", "nearest"), [(10_000, 2_000, 0.75), LONG])
def test_a_stochastic_state_does_not_fall_behind(count: int, steps: int, nearest: float) -> None:
    """With random gradients, nearest rounding keeps .64 of the sum after 2,000 steps and a quarter after 10,000."""
    ratios = {}
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(count, generator=generator) * 1e-4 for _ in range(16)]
    true = sum(gradient.double() ** 2 for gradient in gradients) * (steps / 16) * 1e-8
    for stochastic in (False, True):
        parameter = nn.Parameter(torch.zeros(count))
        optimizer = AdaCoor([parameter], stochastic_state=stochastic)
        for step in range(steps):
            parameter.grad = gradients[step % 16]
            optimizer.step()
        ratios[stochastic] = float((optimizer.state[parameter]["vt"].double() / true).mean())
    assert ratios[True] == pytest.approx(1.0, abs=0.01)
    assert ratios[False] < nearest


def test_bfloat16_weights_follow_those_in_float32() -> None:
    steps, count = 1000, 4000
    distance = {}
    for stochastic in (False, True):
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(count, generator=generator).to(torch.bfloat16)
        coarse, fine = nn.Parameter(start.clone()), nn.Parameter(start.float())
        coarse_optimizer = AdaCoor([coarse], stochastic_weights=stochastic, state_bits=32)
        fine_optimizer = AdaCoor([fine], state_bits=32)
        target = torch.randn(count, generator=generator)
        for _ in range(steps):
            noise = torch.randn(count, generator=generator) * 0.3
            gradient = (1e-4 * (torch.sign(fine.detach() - target) + noise)).to(torch.bfloat16)
            coarse.grad, fine.grad = gradient, gradient.float()
            coarse_optimizer.step()
            fine_optimizer.step()
        moved = (fine.detach() - start.float()).double()
        followed = (coarse.detach().float() - start.float()).double()
        distance[stochastic] = float((followed * moved).sum() / (moved * moved).sum())
    assert distance[True] == pytest.approx(1.0, abs=0.02)
    assert distance[False] < 0.5


def test_the_code_book_has_12_decades() -> None:
    values = blockwise.code_values()
    assert len(values) == len(set(values)) == 256
    assert (values[0], values[-1]) == (0.0, 1.0)
    assert 1e-12 < values[1] < 1.3e-12
    steps = [upper / lower for lower, upper in itertools.pairwise(values[1:])]
    assert max(steps) < 1.5
    assert max(steps[-60:]) < 1.04


def test_the_first_code_book_is_that_of_bitsandbytes() -> None:
    """States of kohya_ext 0.2 have it."""
    values = blockwise.code_values(1)
    assert len(values) == len(set(values)) == 256
    assert (values[0], values[-1]) == (0.0, 1.0)
    assert values[1:3] == pytest.approx([3.25e-7, 7.75e-7])
    functional = pytest.importorskip("bitsandbytes.functional", exc_type=ImportError)
    torch.testing.assert_close(torch.tensor(values), functional.create_dynamic_map(signed=False).float())


@pytest.mark.parametrize(("count", "steps"), [(1 << 13, 640), pytest.param(100_000, 10_000, marks=pytest.mark.slow)])
def test_8_bits_hold_the_sum(count: int, steps: int) -> None:
    """The mean stays within 5 %, and next to no element steps twice too far or half as far."""
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (-5 + 2 * torch.rand(count, generator=generator))
    gradients = [torch.randn(count, generator=generator) * size for _ in range(16)]
    parameter = nn.Parameter(torch.zeros(count))
    optimizer = AdaCoor([parameter], state_bits=8)
    exact = Exact(parameter.detach())
    for step in range(steps):
        parameter.grad = gradients[step % 16]
        optimizer.step()
        exact.total += gradients[step % 16].double() ** 2
    state = optimizer.state[parameter]
    held = blockwise.decode(state["vt"], state["scale"]).double()
    assert float(held.mean() / exact.total.mean()) == pytest.approx(1.0, abs=0.05)
    ratio = (exact.total.sqrt() + 1e-4) / (held.sqrt() + 1e-4)
    assert float(((ratio <= 2) & (ratio >= 0.5)).double().mean()) >= 0.999


@pytest.mark.parametrize("decades_apart", [0, 2, 3, 4])
def test_8_bits_hold_the_mean_sum_of_gradients_that_differ_within_a_block(decades_apart: int) -> None:
    count = 256 * 32
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (-3 - decades_apart * torch.rand(count, generator=generator))
    parameter = nn.Parameter(torch.zeros(count))
    optimizer = AdaCoor([parameter], state_bits=8)
    exact = torch.zeros(count, dtype=torch.float64)
    for _ in range(300):
        parameter.grad = torch.randn(count, generator=generator) * size
        optimizer.step()
        exact += parameter.grad.double() ** 2
    state = optimizer.state[parameter]
    ratio = blockwise.decode(state["vt"], state["scale"]).double() / exact
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(ratio.max()) < 6


def test_neighbouring_codes_are_found_by_arithmetic() -> None:
    book = blockwise.code_book(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    spread = 10 ** (-13 + 13 * torch.rand(200_000, generator=generator))
    powers = torch.tensor([10.0**-k for k in range(14)])
    for share in (spread, book, book.nextafter(torch.tensor(0.0)), book.nextafter(torch.tensor(1.0)), powers):
        wanted = torch.bucketize(share, book).clamp(1, 255) - 1
        assert torch.equal(blockwise.lower_neighbour(share, blockwise.tables(book.device)), wanted.int())


def test_no_positive_sum_becomes_code_0() -> None:
    sums = torch.zeros(600)
    sums[5], sums[6], sums[300] = 1.0, 1e-12, 1e-30
    scales = torch.zeros(3)
    words = random_words(stream_key(0, 0, 0), element_indices(0, 600, sums.device))
    codes, grown = blockwise.encode(sums, scales, words)
    assert torch.equal(codes > 0, sums > 0)
    assert grown.tolist()[2] == 0.0
    held = blockwise.decode(codes, grown)
    assert torch.equal(blockwise.encode(held, grown, words.neg())[0], codes), "what lies on a code must stay there"


def test_deep_copies_go_their_own_way() -> None:
    params = params_of(torch.bfloat16)
    optimizer = AdaCoor(params)
    train(params, optimizer, range(2))
    twin = copy.deepcopy(optimizer)
    train(twin.param_groups[0]["params"], twin, range(2, 4))
    assert twin.state[twin.param_groups[0]["params"][0]]["step"] == 4
    assert optimizer.state[params[0]]["step"] == 2
