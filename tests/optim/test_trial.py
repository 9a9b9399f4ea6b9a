"""The compiled path as the default of a GPU, tried on the CPU: taken where it works, one line where it does not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kohya_ext.optim import AdaCoor, compiled, plan, trial
from kohya_ext.optim.eager import Job, SkipCount, SlicedStep
from kohya_ext.optim.functional import Rule
from kohya_ext.optim.settings import rule_of
from tests.optim.reference import DEFAULTS, decades

SHAPES = [(4099,), (9, 1000), (64, 65), (7,), (5000,)]
needs_a_recent_torch = pytest.mark.skipif(torch.__version__ < (2, 1), reason="torch 2.0 cannot compile this")
needs_a_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU has the defaults of a GPU, and nothing has been tried on it yet."""
    monkeypatch.setattr(trial, "DEVICES", {"cpu"})
    monkeypatch.setattr(trial, "SMALLEST", compiled.SMALLEST)
    monkeypatch.setattr(trial, "_failed", set())
    trial._failure.cache_clear()
    monkeypatch.setattr(plan, "gathers", lambda foreach, fused, device: not fused if foreach is None else foreach)


def train(steps: int = 3, at_once: bool = True, **settings: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = AdaCoor(params, **settings)
    for _ in range(steps):
        for parameter in params:
            parameter.grad = decades(tuple(parameter.shape), generator, -6, -2)
        if at_once:
            optimizer.step()
            continue
        for parameter in params:
            optimizer.step_param(parameter)
    states = [state[name] for state in optimizer.state.values() for name in ("vt", "momentum") if name in state]
    return [*(parameter.detach() for parameter in params), *states]


def assert_same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the tensors that compiled steps were given since."""
    sizes: list[int] = []
    original = compiled.step_many

    def noted(rule: Rule, jobs: Sequence[Job]) -> list[Tensor]:
        sizes.extend(job.weights.numel() for job in jobs)
        return original(rule, jobs)

    monkeypatch.setattr(compiled, "step_many", noted)
    return sizes


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("settings", [{}, {"stochastic_state": True}, {"auto_lr": True, "momentum": 0.9}], ids=str)
@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.slow
@needs_a_recent_torch
@needs_a_compiler
def test_large_tensors_are_compiled_where_that_works(
    settings: dict[str, Any], at_once: bool, compiled_sizes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    train(1, at_once, **settings)  # tries it
    compiled_sizes.clear()
    result = train(3, at_once, **settings)
    assert compiled_sizes == [4099, 9000, 4160, 5000] * 3
    assert capsys.readouterr().out == ""
    assert_same(result, train(3, at_once, fused=False, **settings))


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(
    "settings", [{"state_bits": 32}, {"state_bits": 8}, {"state_bits": 8, "momentum": 0.9}], ids=str
)
@pytest.mark.slow
@needs_a_recent_torch
@needs_a_compiler
def test_other_accumulators_pass_as_well(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    sums = torch.uint8 if settings["state_bits"] == 8 else torch.float32
    kind = (torch.float32, torch.float32, sums, torch.device("cpu"))
    assert trial.passed(rule_of({**DEFAULTS, **settings}), kind), capsys.readouterr().out


@pytest.mark.usefixtures("like_a_gpu")
def test_one_line_where_nothing_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def fails(*given: Any) -> Any:
        tries.append(given)
        raise RuntimeError("cannot compile\nat all") from ImportError("no module named triton\nsecond line")

    monkeypatch.setattr(compiled, "_kernel", fails)
    results = [train(), train(at_once=False), train(stochastic_state=True)]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(tries) == 1
    assert printed[0].startswith("AdaCoor: steps on cpu are not compiled") and "no module named triton)" in printed[0]
    assert_same(results[0], train(foreach=True))
    assert_same(results[1], results[0])
    assert_same(results[2], train(foreach=True, stochastic_state=True))
    with pytest.raises(RuntimeError, match="cannot compile"):  # what is asked for is not replaced
        train(fused=True)


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("settings", [{}, {"state_bits": 32}], ids=str)
def test_one_line_where_what_is_compiled_has_other_bits(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def inexact(rule: Rule, jobs: Sequence[Job]) -> list[Tensor]:
        for job in jobs:
            SlicedStep(SkipCount()).step(rule, *job)
            job.weights[5] *= 1 + 2.0 ** (-22 if job.state["vt"].dtype == torch.bfloat16 else -15)
        return []

    monkeypatch.setattr(compiled, "step_many", inexact)
    result = train(**settings)
    (line,) = capsys.readouterr().out.splitlines()
    assert "other bits" in line
    assert_same(result, train(foreach=True, **settings))


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("settings", [{"foreach": False}, {"foreach": True}, {"fused": False}])
def test_nothing_is_tried_where_another_path_was_asked_for(
    settings: dict[str, Any], compiled_sizes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    train(**settings)
    assert not compiled_sizes and capsys.readouterr().out == ""


@pytest.mark.usefixtures("like_a_gpu")
def test_a_group_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking takes microseconds, and a model has thousands of tensors."""
    asked = []
    monkeypatch.setattr(trial, "passed", lambda *given: asked.append(given))
    train(5)
    assert len(asked) == 1


def test_nothing_is_tried_on_a_cpu(compiled_sizes: list[int]) -> None:
    train(state_bits=32)
    train()
    assert "cpu" not in trial.DEVICES and not compiled_sizes
