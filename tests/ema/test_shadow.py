"""The shadow against a float64 oracle and closed forms; swapping, state, faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from kohya_ext.ema import Schedule, Shadow, blend, constant, debiased, exp, power, warmup
from kohya_ext.tensors import elements

SCHEDULES = [debiased(0.9), constant(0.9), warmup(0.9995), exp(0.95, 15.0, 40), power(0.1)]
SHAPES = [(3,), (17, 5), (4, 3, 2, 2), (), (70_000,)]


def make_params(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def walk(params: list[nn.Parameter], steps: int, seed: int = 1) -> Iterator[list[Tensor]]:
    """Moves the parameters at random; yields copies of the weights after each step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in params:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        yield [parameter.detach().clone() for parameter in params]


def oracle(start: list[Tensor], path: list[list[Tensor]], schedule: Schedule, every: int = 1) -> list[Tensor]:
    """The EMA in float64, straight from the definition."""
    average = [tensor.double() for tensor in start]
    for step, weights in enumerate(path, start=1):
        if step % every == 0:
            weight = schedule.weight(step // every, every)
            average = [(1 - weight) * a + weight * w.double() for a, w in zip(average, weights, strict=True)]
    return average


def shadows_of(shadow: Shadow) -> list[Tensor]:
    return [average for _, _, average in shadow.pairs()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_random_walk_is_averaged_as_in_float64(schedule: Schedule, every: int, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    start = [parameter.detach().clone() for parameter in params]
    shadow = Shadow(params, schedule, update_every=every)
    shadow.capture()
    path = []
    for weights in walk(params, 30):
        path.append(weights)
        shadow.update()
    for average, wanted in zip(shadows_of(shadow), oracle(start, path, schedule, every), strict=True):
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=2e-6)


def test_a_constant_target_is_approached_in_closed_form() -> None:
    parameter = nn.Parameter(torch.zeros(5))
    shadow = Shadow([parameter], constant(0.99))
    shadow.capture()
    parameter.data.fill_(1.0)
    for _ in range(100):
        shadow.update()
    torch.testing.assert_close(shadows_of(shadow)[0], torch.full((5,), 1 - 0.99**100), rtol=1e-5, atol=0)


def test_an_interval_reaches_the_same_average_of_a_constant_target() -> None:
    results = []
    for every in (1, 5):
        parameter = nn.Parameter(torch.zeros(5, dtype=torch.float64))
        shadow = Shadow([parameter], constant(0.99), update_every=every, dtype=torch.float64)
        shadow.capture()
        parameter.data.fill_(1.0)
        for _ in range(100):
            shadow.update()
        assert shadow.updates == 100 // every
        results.append(shadows_of(shadow)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [debiased(0.9), constant(0.9)], ids=lambda schedule: schedule.name)
def test_a_late_start_averages_as_if_training_began_there(schedule: Schedule) -> None:
    params = make_params()
    shadow = Shadow(params, schedule, start_step=4)
    shadow.capture()
    path = []
    for weights in walk(params, 12):
        shadow.update()
        path.append(weights)
        assert shadow.started == (len(path) > 4)
    for average, wanted in zip(shadows_of(shadow), oracle(path[3], path[4:], schedule), strict=True):
        torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize(("every", "start_step"), [(1, 0), (3, 0), (2, 3)])
def test_parameter_by_parameter_equals_all_at_once(schedule: Schedule, every: int, start_step: int) -> None:
    whole, single = make_params(), make_params()
    at_once = Shadow(whole, schedule, update_every=every, start_step=start_step)
    one_by_one = Shadow(single, schedule, update_every=every, start_step=start_step)
    at_once.capture()
    one_by_one.capture()
    for step, weights in enumerate(walk(whole, 11)):
        for parameter, value in zip(single, weights, strict=True):
            parameter.data.copy_(value)
        for number in (4, 0, 3, 1, 2)[step % 2 :]:  # every other step, one parameter had no gradient
            one_by_one.update_param(single[number])
        one_by_one.update()
        at_once.update()
    assert one_by_one.step == at_once.step == 11
    for first, second in zip(shadows_of(at_once), shadows_of(one_by_one), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_parameter_that_comes_round_again_begins_a_step() -> None:
    params = make_params()
    shadow = Shadow(params, debiased(0.9))
    for _ in range(3):
        for parameter in params:
            shadow.update_param(parameter)
    shadow.update()
    assert shadow.step == 3


def test_frozen_and_repeated_parameters_are_left_out() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4), requires_grad=False)
    shadow = Shadow([("a", first), ("b", second), ("also a", first)], debiased(0.9))
    shadow.capture()
    assert [name for name, _, _ in shadow.pairs()] == ["a"]


def test_weights_may_be_cast_and_moved_until_the_first_step() -> None:
    model = nn.Linear(4, 4)
    shadow = Shadow(model.parameters(), debiased(0.9))
    model.to(torch.bfloat16)
    shadow.capture()
    shadow.update()
    with shadow.swap():
        assert model.weight.dtype == torch.bfloat16
    assert {average.dtype for average in shadows_of(shadow)} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_weights_are_averaged_in_their_own_layout(dtype: torch.dtype) -> None:
    weights = torch.randn(4, 3, 5, 5).to(dtype).to(memory_format=torch.channels_last)
    parameter = nn.Parameter(weights)
    shadow = Shadow([parameter], debiased(0.5))
    shadow.capture()
    shadow.update()
    assert torch.equal(shadows_of(shadow)[0], parameter.float())
    parameter.data = parameter.data.contiguous() + 1
    shadow.update()
    exact = weights.float() + (parameter.detach().float() - weights.float()) * 2 / 3
    torch.testing.assert_close(shadows_of(shadow)[0], exact)


@pytest.mark.parametrize("size", [(5,), (70_000,)])
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_weight_never_enters(size: tuple[int], fault: float) -> None:
    parameter = nn.Parameter(torch.zeros(size))
    shadow = Shadow([parameter], constant(0.5))
    shadow.capture()
    parameter.data.fill_(1.0)
    parameter.data[2] = fault
    shadow.update()
    wanted = torch.full(size, 0.5)
    wanted[2] = 0.0
    assert torch.equal(shadows_of(shadow)[0], wanted)
    assert shadow.skipped == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_guard_finite_weights_are_averaged_alike(dtype: torch.dtype) -> None:
    results = []
    for guarded in (True, False):
        params = make_params(dtype)
        shadow = Shadow(params, debiased(0.9), guarded=guarded)
        shadow.capture()
        for _ in walk(params, 5):
            shadow.update()
        results.append(shadows_of(shadow))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_a_huge_finite_weight_does_enter() -> None:
    parameter = nn.Parameter(torch.full((70_000,), 3e38))
    shadow = Shadow([parameter], debiased(0.5))
    shadow.capture()
    shadow.update()
    assert torch.equal(shadows_of(shadow)[0], parameter)
    assert shadow.skipped == 0


def test_the_start_model_is_asked_for_where_it_has_a_share() -> None:
    with pytest.raises(RuntimeError, match="capture"):
        Shadow(make_params(), constant(0.9)).update()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_plain_16_bit_shadows_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="does not move"):
        Shadow(make_params(), debiased(0.9), dtype=dtype)


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="update_every"):
        Shadow([], debiased(0.9), update_every=0)
    with pytest.raises(ValueError, match="start_step"):
        Shadow([], debiased(0.9), start_step=-1)
    with pytest.raises(ValueError, match="two parameters"):
        Shadow([("a", torch.ones(2)), ("a", torch.ones(2))], debiased(0.9))
    with pytest.raises(TypeError, match="ids"):
        Shadow([("ids", torch.ones(2, dtype=torch.int64))], debiased(0.9))


def test_a_bfloat16_average_with_stochastic_rounding_is_unbiased() -> None:
    """At decay 0.9995 nearest rounding would not move at all; the mean over many elements follows the exact average."""
    count, steps = 20_000, 400
    parameter = nn.Parameter(torch.zeros(count))
    shadow = Shadow([parameter], constant(0.9995), dtype=torch.bfloat16, stochastic=True)
    parameter.data.fill_(1.0)
    shadow.capture()
    parameter.data.fill_(1.5)
    for _ in range(steps):
        shadow.update()
    average = shadows_of(shadow)[0]
    assert average.dtype == torch.bfloat16
    wanted = 1.5 - 0.5 * 0.9995**steps
    assert abs(float(average.double().mean()) - wanted) < 0.003
    assert wanted - 1.0 > 0.09


def test_stochastic_averages_depend_on_nothing_but_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for slice_size in (1 << 18, 1000):
        monkeypatch.setattr(elements, "CPU_SLICE", slice_size)
        params = make_params()
        shadow = Shadow(params, debiased(0.9), dtype=torch.bfloat16, stochastic=True, seed=3)
        shadow.capture()
        for _ in walk(params, 5):
            shadow.update()
        results.append(shadows_of(shadow))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_path_for_devices_that_work_in_the_background_gives_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for in_background in (False, True):
        if in_background:
            monkeypatch.setattr(blend, "_may_look_at", lambda device: False)
        params = make_params()
        shadow = Shadow(params, constant(0.9), dtype=dtype, stochastic=dtype == torch.bfloat16)
        shadow.capture()
        for _ in walk(params, 3):
            params[4].data[11] = float("inf")
            shadow.update()
        assert shadow.skipped == 3
        results.append(shadows_of(shadow))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_the_shadow_can_live_on_another_device() -> None:
    """The meta device stands in for a GPU: whatever is computed there must not be asked for its values."""
    params = [nn.Parameter(torch.empty(300_000, device="meta"))]
    shadow = Shadow(params, debiased(0.9), device="meta")
    shadow.capture()
    shadow.update()
    shadow.update()
    assert shadow.updates == 2
    assert shadows_of(shadow)[0].device.type == "meta"


def test_auto_stays_beside_the_weights_without_a_gpu() -> None:
    shadow = Shadow(make_params(), debiased(0.9), device="auto")
    shadow.capture()
    assert shadow.placement is not None
    assert shadow.placement.device is None
    assert "not on a GPU" in shadow.placement.reason
