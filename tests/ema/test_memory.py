"""What an EMA on the host costs: next to nothing on the training device, four bytes a weight on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from kohya_ext.ema import Shadow, debiased
from tests.ema.stand_in_device import DEVICE, OnDevice, Placing, memory

MIB = 2**20
WEIGHTS = 24 * MIB  # in three tensors, the largest of 64 MiB as float32
SHAPES = [(16, MIB), (4, MIB), (4 * MIB,)]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    memory.peak = memory.live
    with Placing():
        yield


def on_device(dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(OnDevice(torch.full(shape, 0.5, dtype=dtype))) for shape in SHAPES]


def peak_of_all(work: Callable[[], None]) -> int:
    """The most bytes that `work` has taken at once, device and host together."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_the_stand_in_counts() -> None:
    before = memory.live
    first = OnDevice(torch.zeros(MIB))
    view = first.view(-1)[5:]
    assert memory.live - before == 4 * MIB
    doubled = first * 2
    assert isinstance(doubled, OnDevice) and doubled.device == DEVICE
    assert memory.live - before == 8 * MIB
    del doubled
    assert memory.live - before == 4 * MIB
    assert not isinstance(view.to("cpu"), OnDevice)
    with pytest.raises(RuntimeError, match="two devices"):
        first + torch.zeros(MIB)
    del first, view
    assert memory.live == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_average_on_the_host(dtype: torch.dtype) -> None:
    params = on_device(dtype)
    size = memory.live
    assert size >= WEIGHTS * params[0].element_size()
    shadow = Shadow(params, debiased(0.9), device="cpu")

    def train() -> None:
        shadow.capture()
        for _ in range(2):
            for parameter in params:
                parameter.data.add_(0.25)
            shadow.update()

    peak = peak_of_all(train)
    assert all(average.device.type == "cpu" and float(average[..., 0].max()) > 0.5 for _, _, average in shadow.pairs())
    assert memory.peak - size <= 16 * MIB, "on the training device"
    assert 4 * WEIGHTS <= peak <= 4 * WEIGHTS + 32 * MIB, "altogether"


@pytest.mark.parametrize("shadow_device", ["cpu", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_save_takes_no_second_copy(dtype: torch.dtype, shadow_device: str | None) -> None:
    """Not on the device, and not on the host either."""
    params = on_device(dtype)
    shadow = Shadow(params, debiased(0.9), device=shadow_device)
    for parameter in params:
        parameter.data.add_(0.25)
    shadow.update()
    for parameter in params:
        parameter.data.add_(0.25)
    size = memory.live
    memory.peak = size
    inside: list[float] = []

    def save() -> None:
        with shadow.swap():
            inside.extend(float(parameter.detach().to("cpu")[..., 0].max()) for parameter in params[1:2])

    raw = float(params[1].detach().to("cpu").max())
    peak = peak_of_all(save)
    assert inside == [0.75]
    assert raw == float(params[1].detach().to("cpu").max()) == 1.0
    copied = params[1].numel() * params[1].element_size()  # by this test
    assert memory.peak - size <= 48 * MIB, "on the training device"
    assert peak - copied <= 48 * MIB, "altogether"
