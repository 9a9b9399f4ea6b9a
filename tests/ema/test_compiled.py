"""The compiled update against the eager one: equal to the last bit or so, and as strict with non-finite weights."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from kohya_ext.ema import Schedule, Shadow, blend, compiled, constant, debiased
from tests.ema.stand_in_device import OnDevice

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)
# more large ones than a compiled pass takes at once, and small ones in between
SIZES = (70_001, 40_000, 5, *range(33_000, 33_010), 7)


def averages(dtype: torch.dtype, schedule: Schedule, **options: object) -> list[Tensor]:
    """Of a short random walk on which single weights are not finite."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in SIZES]
    shadow = Shadow(params, schedule, **options)  # type: ignore[arg-type]
    shadow.capture()
    for _ in range(8):
        for parameter in params:
            parameter.data += torch.randn(parameter.shape, generator=generator).to(dtype)
        params[0].data[3] = float("nan")
        params[1].data[7] = float("inf")
        params[-2].data[-1] = -float("inf")
        shadow.update()
        params[0].data[3] = params[1].data[7] = params[-2].data[-1] = 0.0
    return [average for _, _, average in shadow.pairs()]


@pytest.mark.skipif(not hasattr(torch, "_disable_dynamo"), reason="torch 2.0 cannot leave a function alone")
@pytest.mark.skipif(sys.version_info >= (3, 12) and torch.__version__ < (2, 4), reason="torch cannot compile here")
def test_an_update_that_a_user_compiles_is_not_traced() -> None:
    """As part of a whole training step: what is made of it need not have its bits."""
    traced: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., object]:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    params = [nn.Parameter(torch.zeros(size)) for size in (300, 3)]
    shadow, twin, one_by_one = (Shadow(params, constant(0.9)) for _ in range(3))
    for one in (shadow, twin, one_by_one):
        one.capture()
    compiled_update = torch.compile(lambda: shadow.update(), backend=backend)
    compiled_one = torch.compile(lambda parameter: one_by_one.update_param(parameter), backend=backend)
    for _ in range(3):
        for parameter in params:
            parameter.data += 0.1
            compiled_one(parameter)
        compiled_update()
        twin.update()
    assert not traced
    for ours, theirs, others in zip(shadow.pairs(), twin.pairs(), one_by_one.pairs(), strict=True):
        assert torch.equal(ours[2], theirs[2]) and torch.equal(others[2], theirs[2])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("schedule", [debiased(0.9), constant(0.999)], ids=lambda schedule: schedule.name)
def test_compiled_and_eager_agree(dtype: torch.dtype, schedule: Schedule) -> None:
    eagerly, fast = (averages(dtype, schedule, compiled=choice) for choice in (False, True))
    for eager, quick in zip(eagerly, fast, strict=True):
        assert torch.isfinite(quick).all()
        torch.testing.assert_close(quick, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@needs_compiler
def test_one_parameter_at_a_time_has_the_same_bits() -> None:
    results = []
    for single in (False, True):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]
        shadow = Shadow(params, constant(0.9), compiled=True)
        shadow.capture()
        for _ in range(3):
            for parameter in params:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
                if single:
                    shadow.update_param(parameter)
            shadow.update()
        results.append([average for _, _, average in shadow.pairs()])
    for whole, one_by_one in zip(*results, strict=True):
        assert torch.equal(whole, one_by_one)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_come_from_another_device(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    monkeypatch.setattr(blend, "DEVICE_SLICE", 30_000)
    for elsewhere in (False, True):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(100_000, generator=generator).to(dtype)
        parameter = nn.Parameter(OnDevice(values) if elsewhere else values)
        shadow = Shadow([parameter], constant(0.9), device="cpu", compiled=True)
        shadow.capture()
        for step in range(3):
            parameter.data.mul_(1.0 + step)
            shadow.update()
        results.append(next(shadow.pairs())[2])
    assert torch.equal(*results)


def refuse(*_: object) -> None:
    raise compiled.CannotCompileError("no compiler here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_torch_cannot_compile_updates_are_eager(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = averages(dtype, debiased(0.9), compiled=False)
    monkeypatch.setattr(compiled, "_kernel", refuse)
    monkeypatch.setattr(compiled, "WORTHWHILE", 1)
    with pytest.warns(RuntimeWarning, match=r"no compiler here.*twice as long") as warned:
        found = averages(dtype, debiased(0.9))
    assert len(warned) == 1, "said once"
    for average, exact in zip(found, wanted, strict=True):
        assert torch.equal(average, exact)
    with pytest.raises(RuntimeError, match="no compiler here"):
        averages(dtype, debiased(0.9), compiled=True)


def test_compiling_is_for_many_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of compiling are not spent on an EMA that takes milliseconds."""
    calls: list[Sequence[Tensor]] = []
    monkeypatch.setattr(compiled, "blend_", lambda shadows, *_: calls.extend(shadows))
    averages(torch.float32, constant(0.9))
    assert not calls
    monkeypatch.setattr(compiled, "WORTHWHILE", sum(SIZES))
    averages(torch.float32, constant(0.9))
    assert calls and all(shadow.numel() >= compiled.SMALLEST for shadows in calls for shadow in shadows)


def test_a_kernel_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unguarded(shadows: list[list[Tensor]], weights: list[Tensor], numbers: list[Tensor]) -> None:
        for shadow, newest in zip(shadows[0], weights, strict=True):
            shadow.lerp_(newest, float(numbers[0]))

    monkeypatch.setattr(torch, "compile", lambda *_, **__: unguarded)
    compiled._kernel.cache_clear()
    try:
        with pytest.raises(compiled.CannotCompileError, match="miscompiles"):
            compiled.blend_([[torch.zeros(40_000)]], [torch.ones(40_000)], [0.25])
    finally:
        compiled._kernel.cache_clear()
