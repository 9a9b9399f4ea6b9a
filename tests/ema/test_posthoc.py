"""Averages made afterwards, against the averages of every step's weights in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kohya_ext.ema.posthoc import distance, ema_profile, mix, pace_of, raw_profile
from kohya_ext.ema.schedules import Constant, Debiased, Exponential, Power, Schedule, Warmup
from kohya_ext.ema.shadow import Shadow

STEPS = 400
SCHEDULES: list[Schedule] = [
    Power(0.05),
    Power(0.2),
    Debiased(0.98),
    Constant(0.98),
    Warmup(0.99),
    Exponential(0.99, 15.0, STEPS),
]


def path(kind: str, size: int = 64) -> Tensor:
    """The weights after each step of a made-up run: (STEPS + 1, size), float64; row 0 is the start model."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(STEPS + 1, size, generator=generator, dtype=torch.float64)
    drift = torch.randn(size, generator=generator, dtype=torch.float64)
    times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)[:, None]
    if kind == "wanders":
        return noise.cumsum(0)
    if kind == "jumps":
        return noise
    if kind == "moves steadily":
        return times * drift
    if kind == "slows down":
        return (noise * (1 - times) ** 2).cumsum(0)
    if kind == "with momentum":
        velocity, moved = torch.zeros_like(noise), torch.zeros(size, dtype=torch.float64)
        for step in range(STEPS + 1):
            moved = 0.9 * moved + noise[step]
            velocity[step] = moved
        return velocity.cumsum(0)
    weights = 30 * drift  # gradient descent with noise, from afar into a bowl
    rows = []
    for step in range(STEPS + 1):
        rows.append(weights)
        weights = weights - 0.02 * weights + 0.1 * noise[step]
    return torch.stack(rows)


EVEN = torch.ones(STEPS, dtype=torch.float64)
PATHS = ("wanders", "jumps", "moves steadily", "slows down", "with momentum", "descends")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize(("every", "start"), [(1, 0), (1, 7), (3, 0), (4, 10)])
def test_a_profile_is_what_the_shadow_does(schedule: Schedule, every: int, start: int) -> None:
    weights = path("wanders")
    parameter = torch.nn.Parameter(weights[0].clone())
    shadow = Shadow([parameter], schedule, update_every=every, start_step=start, dtype=torch.float64, compiled=False)
    shadow.capture()
    for step in range(1, 41):
        with torch.no_grad():
            parameter.copy_(weights[step])
        shadow.update()
    profile = ema_profile(schedule, 40, 50, update_every=every, start_step=start)
    assert profile.shape == (51,) and float(profile.sum()) == pytest.approx(1, abs=1e-12)
    [(_, _, average)] = shadow.pairs()
    torch.testing.assert_close(profile @ weights[:51], average, rtol=1e-10, atol=1e-12)


def test_an_average_that_had_not_begun_has_no_profile() -> None:
    with pytest.raises(ValueError, match="starts at step 10"):
        ema_profile(Power(0.1), 10, 20, start_step=10)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("count", [8, 16, 32])
@pytest.mark.parametrize("widths", [(0.05, 0.10), (0.10,)], ids=str)
def test_the_error_is_within_the_bound(kind: str, count: int, widths: tuple[float, ...]) -> None:
    weights = path(kind)
    saves = [round(STEPS * (number + 1) / count) for number in range(count)]
    sources = [ema_profile(Power(width), step, STEPS) for width in widths for step in saves]
    order = sorted(range(len(sources)), key=lambda place: saves[place % count])
    saved = torch.stack(sources)[order] @ weights
    pace = pace_of([sources[place] for place in order], (saved[1:] - saved[:-1]).norm(dim=1).tolist())
    for sigma_rel in (0.03, 0.05, 0.07, 0.12, 0.15, 0.2, 0.25):
        wanted = ema_profile(Power(sigma_rel), STEPS, STEPS)
        found = mix(sources, wanted, pace)
        assert sum(found.coefficients) == pytest.approx(1, abs=1e-12)
        truth = wanted @ weights
        mixed = torch.tensor(found.coefficients, dtype=torch.float64) @ torch.stack(sources) @ weights
        error = float((mixed - truth).norm() / (truth - weights[-1]).norm())
        assert error <= found.bound + 1e-11
        assert found.error <= found.bound


def test_sixteen_snapshots_of_two_widths_are_enough() -> None:
    saves = [round(STEPS * (number + 1) / 16) for number in range(16)]
    sources = [ema_profile(Power(width), step, STEPS) for width in (0.05, 0.10) for step in saves]
    for sigma_rel in (0.05, 0.07, 0.09, 0.12):
        assert mix(sources, ema_profile(Power(sigma_rel), STEPS, STEPS), EVEN).error < 0.01


def test_rounding_keeps_the_coefficients_small_and_counts() -> None:
    sources = [ema_profile(Power(0.1), step, STEPS) for step in range(25, STEPS + 1, 25)]
    wanted = ema_profile(Power(0.04), STEPS, STEPS)
    exact, rounded = mix(sources, wanted, EVEN), mix(sources, wanted, EVEN, noise=0.05)
    assert max(map(abs, rounded.coefficients)) < max(map(abs, exact.coefficients))
    assert exact.rounding == 0
    assert rounded.rounding > 0.05 * sum(value**2 for value in rounded.coefficients) ** 0.5
    assert mix(sources, wanted, EVEN, noise=5.0).coefficients == pytest.approx(rounded.coefficients)


def test_raw_checkpoints_mix_too_and_one_source_is_all_there_is() -> None:
    wanted = ema_profile(Power(0.25), STEPS, STEPS)
    every_step = [raw_profile(step, STEPS) for step in range(1, STEPS + 1)]
    assert mix(every_step, wanted, EVEN).error < 1e-6
    few = [raw_profile(step, STEPS) for step in range(40, STEPS + 1, 40)]
    assert 0.01 < mix(few, wanted, EVEN).error < 0.2
    assert mix(few[-1:], wanted, EVEN).coefficients == (1.0,)
    assert mix(few[-1:], few[-1], EVEN).error == 0


def test_the_pace_is_found_again() -> None:
    truth = torch.linspace(2, 0.1, STEPS, dtype=torch.float64)
    profiles = [ema_profile(Power(width), step, STEPS) for step in range(25, STEPS + 1, 25) for width in (0.05, 0.1)]
    apart = [distance(one, other, truth) for one, other in pairwise(profiles)]
    found = pace_of(profiles, apart)
    assert float(found.square().mean()) == pytest.approx(1)
    scaled = truth / truth.square().mean().sqrt()
    assert float((found - scaled).abs()[: -STEPS // 8].max()) < 0.12
    assert float(pace_of(profiles, [0.0] * len(apart)).std()) == 0  # nothing has moved
