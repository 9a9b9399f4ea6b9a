"""The frozen-shadow stop fires where it should and nowhere else; the distance is the distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kohya_ext.ema import Shadow, blend, constant, debiased
from kohya_ext.ema.health import (
    FrozenCheck,
    FrozenShadowError,
    RoundingForecast,
    relative_distance,
    rounding_noise,
)


def run(shadow: Shadow, parameter: nn.Parameter, steps: int, move: Callable[[int], float]) -> None:
    check = FrozenCheck(shadow, after=5)
    shadow.capture()
    for step in range(steps):
        parameter.data += move(step)
        shadow.update()
        check.check()


def test_an_average_that_stands_still_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.ones(100))
    shadow = Shadow([parameter], constant(0.9995))
    monkeypatch.setattr(blend.Blender, "blend", lambda *_: None)
    with pytest.raises(FrozenShadowError, match="not moved in 5 updates"):
        run(shadow, parameter, 20, lambda _: 1e-3)


def test_a_nearest_rounded_bfloat16_average_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of the old patch, put back: rounding to nearest instead of stochastically."""
    parameter = nn.Parameter(torch.ones(100))
    shadow = Shadow([parameter], constant(0.9995), dtype=torch.bfloat16, stochastic=True)
    monkeypatch.setattr(blend, "round_stochastically", lambda values, _words, dtype: values.to(dtype))
    with pytest.raises(FrozenShadowError):
        run(shadow, parameter, 20, lambda _: 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_is_no_false_alarm(dtype: torch.dtype) -> None:
    timings: list[dict[str, Any]] = [{}, {"start_step": 12}, {"update_every": 7}]
    for options in timings:
        for move in (lambda _: 0.0, lambda _: 1e-2, lambda step: 1e-2 * (step > 15)):
            parameter = nn.Parameter(torch.ones(4000))
            shadow = Shadow([parameter], debiased(0.99), dtype=dtype, stochastic=dtype == torch.bfloat16, **options)
            run(shadow, parameter, 40, move)


def test_the_distance_is_relative() -> None:
    parameter = nn.Parameter(torch.full((300, 300), 2.0))
    shadow = Shadow([parameter], debiased(0.5))
    assert relative_distance(shadow) == 0.0
    shadow.capture()
    shadow.update()
    assert relative_distance(shadow) == 0.0
    parameter.data.fill_(4.0)
    assert relative_distance(shadow) == pytest.approx(0.5)
    parameter.data[0, 0] = float("nan")
    assert relative_distance(shadow) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(("rate", "noisy"), [(1e-6, True), (1e-5, True), (1e-4, True), (3e-3, False), (1e-2, False)])
def test_a_bfloat16_average_that_is_noise_is_seen(rate: float, noisy: bool) -> None:
    """Held to the error that it has against a float64 twin."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(4000, generator=generator))
    coarse = Shadow([parameter], debiased(0.99), dtype=torch.bfloat16, stochastic=True, compiled=False)
    twin = Shadow([parameter], debiased(0.99), dtype=torch.float64, compiled=False)
    for _ in range(200):
        with torch.no_grad():
            parameter.add_(torch.randn(4000, generator=generator).sign() * rate)
        coarse.update()
        twin.update()
    [(_, weights, ours)], [(_, _, exact)] = coarse.pairs(), twin.pairs()
    error = float((ours.double() - exact).norm() / (weights.double() - exact).norm())
    found = rounding_noise(coarse)
    assert (found > 0.5) == noisy
    if noisy:
        assert error > 0.5
    else:
        assert found / 2 < error < 2 * found
    assert rounding_noise(twin) == 0


def forecast_and_error(rate: float, warm_up: int = 1, pull: float = 0.0, steps: int = 600) -> tuple[float, float]:
    """What is said after 50 steps of a random walk, and the error of the EMA in the end, against a float64 twin."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(2000, generator=generator))
    coarse = Shadow([parameter], debiased(0.99), dtype=torch.bfloat16, stochastic=True, compiled=False)
    twin = Shadow([parameter], debiased(0.99), dtype=torch.float64, compiled=False)
    watch, said = RoundingForecast(coarse, 100, after=50), []
    for step in range(steps):
        share = min(1.0, (step + 1) / warm_up)
        with torch.no_grad():
            parameter.add_((torch.randn(2000, generator=generator) + pull) * rate * share)
        coarse.update()
        twin.update()
        said += [error for error in [watch.after_step(share)] if error is not None]
    [(_, weights, ours)], [(_, _, exact)] = coarse.pairs(), twin.pairs()
    assert len(said) == 1
    return said[0], float((ours.double() - exact).norm() / (weights.double() - exact).norm())


@pytest.mark.parametrize(("rate", "refused"), [(1e-5, True), (1e-4, True), (3e-3, False), (1e-2, False)])
@pytest.mark.parametrize("warm_up", [1, 200])
def test_the_noise_of_a_bfloat16_average_is_foreseen(rate: float, refused: bool, warm_up: int) -> None:
    said, error = forecast_and_error(rate, warm_up)
    assert (said >= 1) == (error >= 1) == refused
    if not refused:
        assert said == pytest.approx(error, rel=0.3)


def test_a_steady_drift_has_less_noise_than_foreseen() -> None:
    """So what is refused wrongly has still much: less than three times what is told."""
    said, error = forecast_and_error(3e-4, pull=1.0)
    assert error < said < 3 * error


def test_nothing_is_foreseen_of_other_dtypes_or_weights_that_stand_still() -> None:
    parameter = torch.nn.Parameter(torch.ones(50))
    for dtype in (torch.float32, torch.bfloat16):
        shadow = Shadow([parameter], debiased(0.99), dtype=dtype, stochastic=dtype == torch.bfloat16)
        watch = RoundingForecast(shadow, 100, after=5)
        for step in range(20):
            shadow.update()
            if dtype == torch.float32:
                parameter.data += 1e-8 * step
            assert watch.after_step(1.0) is None
            assert watch.after_step(0.0) is None
