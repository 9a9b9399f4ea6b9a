"""What a run says about its average: the time it takes, and how it stands."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.ema import device  # noqa: E402
from kohya_ext.runtime import averaging, checkpoints, optimizers, stopwatch, tracks  # noqa: E402
from kohya_ext.runtime.telemetry import Telemetry  # noqa: E402
from tests.runtime.conftest import Run  # noqa: E402

Begin = Callable[..., Run]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds it 3 ms on: so an update, between two looks, takes as long."""
    times = iter(n * 3e-3 for n in range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(stopwatch, "SETTLED", 4)


@pytest.mark.parametrize("settings", [{}, {"ema_update_every": 3}, {"ema_start_step": 5}])
def test_the_cost_is_said_once(
    begin: Begin, clock: None, settings: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(**settings)
    run.args.max_train_steps = 60
    run.step(60)
    said = capsys.readouterr().out
    assert said.count("ms a step") == 1
    assert "kohya_ext: the EMA takes 3 ms a step" in said


def test_a_fused_backward_pass_costs_the_sum_of_its_parts(
    begin: Begin, clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    wrapped = type("Wrapped", (), {})()
    wrapped.optimizer = run.optimizer
    wrapped.step_param = lambda parameter, group: None
    step_param = optimizers._then_average(wrapped.step_param, averaging.current())  # type: ignore[arg-type]
    for _ in range(20):
        for parameter in run.model.parameters():
            parameter.data += 1
            step_param(parameter, run.optimizer.param_groups[0])
    assert "the EMA takes 6 ms a step" in capsys.readouterr().out  # a weight and a bias


def test_a_save_says_how_the_average_stands(begin: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin()
    run.step(3)
    checkpoints.save_at_end(lambda args, sd_saver: None, run.args, lambda *_: None)
    exact = run.expected()
    apart = sum(float(((exact[name] - value) ** 2).sum()) for name, value in run.weights().items()) ** 0.5
    size = sum(float((value**2).sum()) for value in run.weights().values()) ** 0.5
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("kohya_ext: EMA saved after 3 steps: decay 0.630996, ")  # 1 - (1 - d) / (1 - d**3)
    assert float(said.rpartition(" = ")[2]) == pytest.approx(apart / size, rel=5e-3)


def test_the_average_joins_the_telemetry(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()
    telemetry = Telemetry(2)
    telemetry.follow(run.optimizer)
    run.step(4)
    telemetry._look()
    found = telemetry._latest
    assert found["kohya_ext/ema_decay"] == pytest.approx(1 - 0.1 / (1 - 0.9**3))  # the fourth step waits for the fifth
    assert found["kohya_ext/ema_distance"] > 0


def test_a_run_says_where_an_average_that_waited_is_kept(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    size = sum(parameter.numel() for parameter in run.model.parameters())
    monkeypatch.setattr(device, "_memory", lambda _: (55 * size, 200 * size))  # bytes, as of a GPU
    run.step(1)
    assert "kept in host memory during the first step" in capsys.readouterr().out
    run.step(3)
    said = [line for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert said == ["kohya_ext: EMA is kept on the training device: at least 20% of its memory stays free"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_save_says_that_a_bfloat16_average_is_noise(
    begin: Begin, dtype: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    run = begin(ema_dtype=dtype)
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-7
    run.step(20)
    for _ in range(2):
        checkpoints.save_at_end(lambda args, sd_saver: None, run.args, lambda *_: None)
    assert capsys.readouterr().err.count("Use --ema_dtype float32") == (dtype == "bfloat16")


@pytest.mark.parametrize(
    ("settings", "group", "stops"),
    [
        ({"ema_dtype": "bfloat16"}, {}, True),
        ({"ema_dtype": "bfloat16", "ema_update_every": 3}, {}, True),
        ({"ema_dtype": "bfloat16"}, {"initial_lr": 10.0}, False),  # a warm-up
        ({"ema_dtype": "bfloat16"}, {"d": 1e-6}, False),  # the optimizer finds its rate
        ({"ema_dtype": "bfloat16"}, {"lr": 0.1}, False),
        ({}, {}, False),
    ],
    ids=str,
)
def test_a_bfloat16_average_that_would_be_noise_stops_the_run(
    begin: Begin,
    settings: dict[str, object],
    group: dict[str, float],
    stops: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracks, "STEPS_TO_FORECAST", 10)
    run = begin(**settings)
    run.args.max_train_steps = 2000
    run.optimizer.param_groups[0].update({"lr": 1e-7, **group})
    if stops:
        with pytest.raises(SystemExit):
            run.step(60)
        assert "--ema_dtype bfloat16 is too coarse for this run" in capsys.readouterr().err
    else:
        run.step(60)
