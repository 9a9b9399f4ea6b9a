"""Several averages of the same weights: one pass, and the bits of as many passes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kohya_ext.ema import Shadow, constant, power
from kohya_ext.ema.device import Staging
from tests.ema.stand_in_device import OnDevice

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)
SIZES = ((70_001,), (40_000,), (5,), (33, 1001), (7,), (3, 4, 5, 6))
SCHEDULES = (power(0.05), power(0.2), constant(0.9))
STEPS = 8


def weights_of(dtype: torch.dtype, *, elsewhere: bool = False, turned: bool = False) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=generator).to(dtype) for size in SIZES]
    if turned:
        made[-1] = made[-1].to(memory_format=torch.channels_last)
        made[3] = made[3].t()
    return [nn.Parameter(OnDevice(one) if elsewhere else one) for one in made]


@contextmanager
def unusable(params: list[nn.Parameter]) -> Iterator[None]:
    """Two weights are not finite meanwhile, where they are in host memory."""
    if isinstance(params[0].data, OnDevice):
        yield
        return
    held = params[0].data[3].clone(), params[2].data[1].clone()
    params[0].data[3], params[2].data[1] = float("nan"), float("inf")
    yield
    params[0].data[3], params[2].data[1] = held


def averages(params: list[nn.Parameter], *, together: bool, **options: Any) -> tuple[list[Tensor], list[int]]:
    """Of a walk on which single weights are not finite; and how many each has kept out."""
    shadows = [Shadow(params, schedule, **options) for schedule in SCHEDULES]
    for shadow in shadows:
        shadow.capture()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(STEPS):
            for parameter in params:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.data.add_(OnDevice(noise) if isinstance(parameter.data, OnDevice) else noise)
            with unusable(params):
                if together:
                    shadows[0].update(*shadows[1:])
                else:
                    for shadow in shadows:
                        shadow.update()
    assert [(one.step, one.updates) for one in shadows] == [(shadows[0].step, shadows[0].updates)] * len(shadows)
    return [average for shadow in shadows for _, _, average in shadow.pairs()], [one.skipped for one in shadows]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for own, alone in zip(found, wanted, strict=True):
        assert torch.equal(own, alone) and torch.isfinite(own).all()


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "turned"])
@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": torch.bfloat16, "stochastic": True}, {"dtype": torch.float64}, {"update_every": 2},
     {"start_step": 3}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_pass_has_the_bits_of_several(dtype: torch.dtype, options: dict[str, Any], turned: bool) -> None:
    (found, kept_out), (wanted, alone) = (
        averages(weights_of(dtype, turned=turned), together=together, compiled=False, **options)
        for together in (True, False)
    )
    assert_same(found, wanted)
    assert kept_out == alone and kept_out[0] > 0


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_compiled_pass_has_the_bits_of_several(dtype: torch.dtype) -> None:
    (found, _), (wanted, _) = (
        averages(weights_of(dtype), together=together, compiled=True) for together in (True, False)
    )
    assert_same(found, wanted)


@pytest.mark.parametrize("shadow_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_on_another_device_come_once(shadow_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[int] = []
    bring = Staging.bring

    def counted(self: Any, flat: Tensor, *rest: Any, **more: Any) -> Any:
        brought.append(flat.numel())
        return bring(self, flat, *rest, **more)

    monkeypatch.setattr(Staging, "bring", counted)
    options = {"device": "cpu", "compiled": False, "dtype": shadow_dtype, "stochastic": shadow_dtype != torch.float32}
    found, once = averages(weights_of(torch.float32, elsewhere=True), together=True, **options)[0], sum(brought)
    brought.clear()
    wanted, each = averages(weights_of(torch.float32, elsewhere=True), together=False, **options)[0], sum(brought)
    assert_same(found, wanted)
    assert each == len(SCHEDULES) * once and once > 0


def test_weights_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    total = Tensor.sum

    def counted(self: Tensor, *args: Any, **more: Any) -> Tensor:
        looked.append(self.numel())
        return total(self, *args, **more)

    params = weights_of(torch.float32)
    shadows = [Shadow(params, schedule, compiled=False) for schedule in SCHEDULES]
    for shadow in shadows:
        shadow.capture()
    monkeypatch.setattr(Tensor, "sum", counted)
    shadows[0].update()
    alone = list(looked)
    looked.clear()
    shadows[0].update(*shadows[1:])
    assert looked == alone and alone


def test_averages_of_other_weights_are_updated_each_by_itself() -> None:
    first, second = weights_of(torch.float32), weights_of(torch.float32)
    with torch.no_grad():
        for parameter in second:
            parameter.mul_(2)
    one, other = (Shadow(params, constant(0.5)) for params in (first, second))
    one.capture()
    other.capture()
    with torch.no_grad():
        for parameter in (*first, *second):
            parameter.add_(1)
    one.update(other)
    for shadow, params in ((one, first), (other, second)):
        for _, weights, average in shadow.pairs():
            torch.testing.assert_close(average, weights.detach() - 0.5)
        assert shadow.updates == 1 and params


@pytest.mark.parametrize(
    "unlike", [{"dtype": torch.float64}, {"update_every": 2}, {"start_step": 2}, {"guarded": False}], ids=str
)
def test_averages_that_differ_are_updated_each_by_itself(unlike: dict[str, Any]) -> None:
    results = []
    for together in (True, False):
        params = weights_of(torch.float32)
        shadows = [Shadow(params, constant(0.9)), Shadow(params, constant(0.5), **unlike)]
        for shadow in shadows:
            shadow.capture()
        for _ in range(4):
            with torch.no_grad():
                for parameter in params:
                    parameter.add_(1)
            if together:
                shadows[0].update(shadows[1])
            else:
                shadows[0].update()
                shadows[1].update()
        results.append([average for shadow in shadows for _, _, average in shadow.pairs()])
    assert_same(*results)


def test_parameters_of_a_fused_backward_pass_are_done_once() -> None:
    """What `update_param` has done in this step is left out, for all averages or for each by itself."""
    results = []
    for first_alone in (False, True):
        params = weights_of(torch.float32)
        shadows = [Shadow(params, schedule) for schedule in SCHEDULES[:2]]
        for shadow in shadows:
            shadow.capture()
        with torch.no_grad():
            for parameter in params:
                parameter.add_(1)
        for shadow in shadows[: 1 if first_alone else 2]:
            for parameter in params[:3]:
                shadow.update_param(parameter)
        shadows[0].update(shadows[1])
        results.append([average for shadow in shadows for _, _, average in shadow.pairs()])
    assert_same(*results)


def test_a_resumed_average_joins_again() -> None:
    """Loading a state makes new shadows: the old ones may not be blended in their place."""
    params = weights_of(torch.float32)
    shadows = [Shadow(params, schedule) for schedule in SCHEDULES[:2]]
    for shadow in shadows:
        shadow.capture()
    shadows[0].update(shadows[1])
    states = [{**shadow.state_dict(), "shadow": {n: t.clone() for n, t in shadow.state_dict()["shadow"].items()}}
              for shadow in shadows]  # fmt: skip
    with torch.no_grad():
        for parameter in params:
            parameter.add_(1)
    shadows[0].update(shadows[1])
    wanted = [average.clone() for shadow in shadows for _, _, average in shadow.pairs()]
    for shadow, state in zip(shadows, states, strict=True):
        shadow.load_state_dict(state)
    shadows[0].update(shadows[1])
    assert_same([average for shadow in shadows for _, _, average in shadow.pairs()], wanted)
