"""The EMA in the place of the weights, and the raw weights back bit for bit, also when things go wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kohya_ext.ema import Shadow, debiased, swap
from kohya_ext.tensors import elements


def make(dtype: torch.dtype, shadow_dtype: torch.dtype = torch.float32) -> tuple[list[nn.Parameter], Shadow]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(50,), (7, 9), ()]]
    stochastic = shadow_dtype == torch.bfloat16
    shadow = Shadow(params, debiased(0.9), dtype=shadow_dtype, stochastic=stochastic)
    shadow.capture()
    for _ in range(3):
        for parameter in params:
            parameter.data += torch.randn(parameter.shape, generator=generator).to(dtype)
        shadow.update()
    # values whose bits a cast would lose
    params[0].data[0] = float("nan")
    params[0].data[1] = -0.0
    return params, shadow


def bits(tensors: Any) -> list[Tensor]:
    return [tensor.detach().clone().reshape(-1).view(torch.uint8) for tensor in tensors]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def averages(shadow: Shadow) -> list[Tensor]:
    return [average for _, _, average in shadow.pairs()]


def is_swapped(shadow: Shadow) -> bool:
    """The property as it is now: mypy holds what one assertion said of it for true ever after."""
    return shadow.swapped


DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
]


@pytest.fixture(autouse=True)
def _gradients_stay_on() -> Iterator[None]:
    """An interrupt that hits the very line of `with torch.no_grad()` can leave gradients off, in this process only."""
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "DEVICE_SLICE", 16)


@pytest.mark.parametrize(("dtype", "shadow_dtype"), DTYPES, ids=str)
def test_the_average_goes_in_and_the_raw_bits_come_back(dtype: torch.dtype, shadow_dtype: torch.dtype) -> None:
    params, shadow = make(dtype, shadow_dtype)
    raw, average = bits(params), bits(averages(shadow))
    wanted = [tensor.to(dtype) for tensor in averages(shadow)]
    wanted = [tensor.clone() for tensor in wanted]
    with shadow.swap():
        assert is_swapped(shadow)
        assert all(torch.equal(parameter, tensor) for parameter, tensor in zip(params, wanted, strict=True))
    assert not is_swapped(shadow)
    assert same(bits(params), raw)
    assert same(bits(averages(shadow)), average)


@pytest.mark.parametrize(("dtype", "shadow_dtype"), DTYPES[:2], ids=str)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_body_brings_the_raw_weights_back(
    dtype: torch.dtype, shadow_dtype: torch.dtype, error: type[BaseException]
) -> None:
    params, shadow = make(dtype, shadow_dtype)
    raw, average = bits(params), bits(averages(shadow))
    with pytest.raises(error), shadow.swap():
        raise error
    assert same(bits(params), raw)
    assert same(bits(averages(shadow)), average)


class InterruptAtLine:
    """Raises at the n-th line that runs inside the swap module, as Ctrl-C would at any bytecode."""

    def __init__(self, line: int) -> None:
        self.left = line
        self.fired = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != swap.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.fired = True
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize(("dtype", "shadow_dtype"), DTYPES[:2], ids=str)
def test_an_interrupt_at_any_line_leaves_weights_and_average_intact(
    dtype: torch.dtype, shadow_dtype: torch.dtype
) -> None:
    params, shadow = make(dtype, shadow_dtype)
    raw, average = bits(params), bits(averages(shadow))
    line, fired = 0, True
    while fired:
        line += 1
        interrupt = InterruptAtLine(line)
        previous = sys.gettrace()
        sys.settrace(interrupt)
        try:
            with shadow.swap():
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(previous)
        fired = interrupt.fired
        assert not shadow.swapped
        assert same(bits(params), raw), f"weights damaged by an interrupt at line event {line}"
        assert same(bits(averages(shadow)), average), f"average damaged by an interrupt at line event {line}"
    assert line > 50


def test_raw_weights_can_be_had_inside_a_swap() -> None:
    params, shadow = make(torch.float32)
    raw = bits(params)
    with shadow.swap():
        average = bits(params)
        with shadow.raw():
            assert same(bits(params), raw)
        assert same(bits(params), average)
    assert same(bits(params), raw)


def test_nothing_else_works_while_swapped() -> None:
    _, shadow = make(torch.float32)
    with shadow.swap():
        for call in (shadow.update, shadow.capture, shadow.swap_in, shadow.state_dict):
            with pytest.raises(RuntimeError, match="swap"):
                call()


def test_a_parameter_that_changes_layout_or_dtype_meanwhile_still_comes_back() -> None:
    parameter = nn.Parameter(torch.randn(4, 3, 5, 5))
    shadow = Shadow([parameter], debiased(0.9))
    shadow.capture()
    shadow.update()
    raw = parameter.detach().clone()
    with shadow.swap():
        parameter.data = parameter.data.to(memory_format=torch.channels_last)
    assert torch.equal(parameter, raw)
    with pytest.warns(RuntimeWarning, match="cast"), shadow.swap():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert torch.equal(parameter, raw.to(torch.bfloat16))


def test_an_exchange_takes_no_memory_of_the_size_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "DEVICE_SLICE", elements.DEVICE_SLICE)
    parameter = nn.Parameter(torch.zeros(20_000_000))
    shadow = Shadow([parameter], debiased(0.9))
    shadow.capture()
    shadow.update()
    with torch.profiler.profile(profile_memory=True) as profile, shadow.swap():
        pass
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 0 < peak < 40 * 2**20


def every_bfloat16() -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def finite_averages(count: int) -> torch.Tensor:
    """Finite float32 numbers: random bits, and those at which rounding changes its mind."""
    generator = torch.Generator().manual_seed(0)
    upper = torch.randint(-(1 << 15), 1 << 15, (count,), generator=generator, dtype=torch.int32)
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234], dtype=torch.int32).repeat(count // 7 + 1)[:count]
    found = ((upper << 16) | low).view(torch.float32)
    return torch.where(torch.isfinite(found), found, 1.5)


def test_every_bit_comes_back_of_packed_bfloat16() -> None:
    raw = every_bfloat16()  # infinities and all NaN among them
    average = finite_averages(len(raw))
    inside, held = swap.pack(raw, average)
    back, average_back = swap.unpack(inside, held)
    assert torch.equal(back.view(torch.int16), raw.view(torch.int16))
    assert torch.equal(average_back.view(torch.int32), average.view(torch.int32))


def test_the_average_packed_as_bfloat16_is_rounded_to_the_nearest() -> None:
    average = finite_averages(1 << 16)
    inside, _ = swap.pack(torch.zeros(len(average), dtype=torch.bfloat16), average)
    tie = (average.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(inside[~tie], average[~tie].to(torch.bfloat16))
    ties = inside[tie].double() - average[tie].double()
    even = average[tie].to(torch.bfloat16).double() - average[tie].double()
    same_size = (ties.abs() == even.abs()) | torch.isinf(inside[tie])
    assert same_size.all()


def test_only_bfloat16_next_to_float32_is_packed() -> None:
    full, half, other = (torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert swap.packable(half, full)
    assert not any(swap.packable(*pair) for pair in ((full, full), (other, full), (half, half), (full, half)))
