"""bfloat16 weights inside their float32 shadow: every bit comes back, and the EMA is rounded to the nearest."""

from __future__ import annotations

import torch

from kohya_ext.ema import bf16_swap


def every_bfloat16() -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def averages(count: int) -> torch.Tensor:
    """Finite float32 numbers: random bits, and those at which rounding changes its mind."""
    generator = torch.Generator().manual_seed(0)
    upper = torch.randint(-(1 << 15), 1 << 15, (count,), generator=generator, dtype=torch.int32)
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234], dtype=torch.int32).repeat(count // 7 + 1)[:count]
    found = ((upper << 16) | low).view(torch.float32)
    return torch.where(torch.isfinite(found), found, 1.5)


def test_every_bit_comes_back() -> None:
    raw = every_bfloat16()  # infinities and all NaN among them
    average = averages(len(raw))
    inside, held = bf16_swap.put_in(raw, average)
    back, average_back = bf16_swap.take_out(inside, held)
    assert torch.equal(back.view(torch.int16), raw.view(torch.int16))
    assert torch.equal(average_back.view(torch.int32), average.view(torch.int32))


def test_the_average_is_rounded_to_the_nearest() -> None:
    average = averages(1 << 16)
    inside, _ = bf16_swap.put_in(torch.zeros(len(average), dtype=torch.bfloat16), average)
    tie = (average.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(inside[~tie], average[~tie].to(torch.bfloat16))
    ties = inside[tie].double() - average[tie].double()
    even = average[tie].to(torch.bfloat16).double() - average[tie].double()
    same_size = (ties.abs() == even.abs()) | torch.isinf(inside[tie])
    assert same_size.all()


def test_only_for_that_combination() -> None:
    full, half, other = (torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert bf16_swap.fits(half, full)
    assert not any(bf16_swap.fits(*pair) for pair in ((full, full), (other, full), (half, half), (full, half)))
