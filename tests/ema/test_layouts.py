"""Weights of any layout: the average of the twin, weights that come back bit for bit, and nothing else written to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kohya_ext.ema import Shadow, blend, constant, swap
from kohya_ext.tensors import elements
from tests.ema.stand_in_device import OnDevice
from tests.layouts import SHAPES, Guarded, Layout, layouts

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
DECAY = 0.75


@pytest.fixture(autouse=True, scope="module")
def small_slices() -> Iterator[None]:
    """Sizes at which small tensors take the ways of large ones as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "CPU_SLICE", 64)
        patch.setattr(blend, "DEVICE_SLICE", 64)
        patch.setattr(blend, "_SMALL", 32)
        patch.setattr(swap, "DEVICE_SLICE", 64)
        yield


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("average", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["together", "one by one", "unguarded", "in the background"])
@settings(max_examples=12)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), shared=st.booleans())
def test_any_layout_is_averaged_and_swapped_alone(
    average: torch.dtype, way: str, data: st.DataObject, dtype: torch.dtype, shared: bool
) -> None:
    found = [data.draw(layouts(data.draw(SHAPES))) for _ in range(data.draw(st.integers(1, 4)))]
    length = sum(layout.length for layout in found)
    guards, params, start = [Guarded(dtype, length, 1)], [], 0
    for number, layout in enumerate(found):
        if not shared:
            guards.append(Guarded(dtype, layout.length, number))
        placed = Layout(layout.shape, layout.stride, layout.offset + (start if shared else 0), length)
        params.append(nn.Parameter(placed.view(guards[-1].buffer)))
        start += layout.length
    options = {"stochastic": average == torch.bfloat16, "guarded": way != "unguarded"}
    with pytest.MonkeyPatch.context() as patch:
        if way == "in the background":
            patch.setattr(blend, "_may_look_at", lambda device: False)
        shadow = Shadow(params, constant(DECAY), dtype=average, **options)
        shadow.capture()
        twins = [parameter.detach().to(torch.float64, copy=True) for parameter in params]
        for _ in range(3):
            for number, parameter in enumerate(params):
                parameter.data.add_(0.5)
                twins[number] = twins[number] * DECAY + parameter.detach().double() * (1 - DECAY)
                if way == "one by one":
                    shadow.update_param(parameter)
            shadow.update()
    close = {"rtol": 0.02, "atol": 0.02} if average == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for (_, _, own), twin in zip(shadow.pairs(), twins, strict=True):
        torch.testing.assert_close(own.double(), twin, **close)
    raw, averages = [as_bytes(p) for p in params], [as_bytes(own) for _, _, own in shadow.pairs()]
    wanted = [own.to(dtype, copy=True) for _, _, own in shadow.pairs()]
    with shadow.swap():
        for parameter, own in zip(params, wanted, strict=True):
            # bfloat16 weights take the EMA rounded half away from zero
            torch.testing.assert_close(parameter.detach(), own, rtol=0.01 if dtype == torch.bfloat16 else 0, atol=0)
    assert all(torch.equal(as_bytes(parameter), before) for parameter, before in zip(params, raw, strict=True))
    assert all(torch.equal(as_bytes(own), before) for (_, _, own), before in zip(shadow.pairs(), averages, strict=True))
    for guard in guards:
        assert guard.changed_outside(*(p.detach() for p in params if _within(p, guard.buffer))) == 0


def _within(parameter: nn.Parameter, buffer: Tensor) -> bool:
    return parameter.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_weights_on_another_device(dtype: torch.dtype) -> None:
    """They are brought over by copies; what lies between them is neither read as weights nor written to."""
    base = torch.randn(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for elsewhere in (False, True):
        parameter = nn.Parameter(OnDevice(base[:, 0]) if elsewhere else base[:, 0])
        shadow = Shadow([parameter], constant(DECAY), device="cpu")
        shadow.capture()
        shadow.update()
        results.append(next(shadow.pairs())[2])
    assert torch.equal(*results)


@pytest.mark.parametrize("average", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 3])
def test_parameters_with_memory_in_common_come_back(average: torch.dtype, dtype: torch.dtype, shift: int) -> None:
    """Put in one after the other, they have to come back in the reverse order."""
    base = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    params = [nn.Parameter(base[:100]), nn.Parameter(base[shift : 100 + shift]), nn.Parameter(base[::2])]
    shadow = Shadow(params, constant(DECAY), dtype=average, stochastic=average == torch.bfloat16)
    shadow.capture()
    base.mul_(2)
    shadow.update()
    raw, averages = as_bytes(base), [as_bytes(own) for _, _, own in shadow.pairs()]
    with shadow.swap():
        assert not torch.equal(as_bytes(base), raw)
    assert torch.equal(as_bytes(base), raw)
    assert all(torch.equal(as_bytes(own), before) for (_, _, own), before in zip(shadow.pairs(), averages, strict=True))


def test_weights_that_cannot_be_averaged_are_refused_by_name() -> None:
    good = torch.ones(3)
    for bad, message in (
        (torch.ones(1).expand(5), "share memory"),
        (torch.ones(9).as_strided((4, 3), (1, 1)), "share memory"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, 2).to_sparse(), "sparse"),
    ):
        with pytest.raises(TypeError, match=rf"'bad' .*{message}"):
            Shadow([("good", good), ("bad", bad)], constant(DECAY))


def test_a_gap_in_weights_with_dimensions_of_one() -> None:
    """Their bfloat16 shadow is one stretch of memory with other strides, which torch refuses to copy onto itself."""
    parameter = nn.Parameter(torch.ones(3).as_strided((1, 1, 1, 2), (1, 1, 1, 2)))
    shadow = Shadow([parameter], constant(DECAY), dtype=torch.bfloat16, stochastic=True)
    shadow.capture()
    parameter.data.fill_(3.0)
    shadow.update()
    assert next(shadow.pairs())[2].flatten().tolist() == [1.5, 1.5]
