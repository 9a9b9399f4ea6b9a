"""Weights and gradients of any layout: the result of the twin, and not a bit changed outside of the weights."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kohya_ext.optim import AdaCoor, torch_adagrad
from kohya_ext.tensors import elements
from tests.layouts import SHAPES, Guarded, Layout, layouts, memory_order
from tests.optim.reference import Formula, decades

# Every path that a step can take on a host; fused=True is in the slow test below.
PATHS: list[dict[str, Any]] = [
    {},
    {"fused": False},
    {"foreach": True},
    {"stochastic_state": True},
    {"stochastic_weights": False},
    {"state_bits": 32},
    {"state_bits": 32, "fused": False},
    {"state_bits": 32, "foreach": True},
    {"state_bits": 32, "weight_decay": 10.0, "maximize": True},
    {"state_bits": 8},
    {"state_bits": 8, "foreach": True},
    {"auto_lr": True},
    {"auto_lr": True, "foreach": True, "lr": 3.0},
    {"auto_lr": True, "momentum": 0.9, "weight_decay": 10.0},
    {"auto_lr": True, "momentum": 0.9, "foreach": True, "stochastic_state": True},
    {"auto_lr": True, "state_bits": 32},
    {"auto_lr": True, "state_bits": 32, "momentum": 0.9, "foreach": True, "maximize": True},
    {"auto_lr": True, "state_bits": 8, "momentum": 0.9},
    {"momentum": 0.9},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True, scope="module")
def small_slices() -> Iterator[None]:
    """Sizes at which small tensors take the ways of large ones as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "CPU_SLICE", 256)
        patch.setattr(torch_adagrad, "_SLICE", 128)
        patch.setattr(torch_adagrad, "SMALL", 32)
        yield


class Case:
    """Parameters in guarded memory, the optimizer, and a twin of each parameter."""

    def __init__(self, found: list[Layout], dtype: torch.dtype, path: dict[str, Any], shared: bool) -> None:
        self.dtype, self.path = dtype, path
        self.guards: list[tuple[Guarded, list[nn.Parameter]]] = []
        if shared:  # one after the other in one buffer
            starts = [sum(layout.length for layout in found[:number]) for number in range(len(found) + 1)]
            guard = Guarded(dtype, starts[-1], 0)
            placed = [
                replace(layout, offset=layout.offset + start) for layout, start in zip(found, starts, strict=False)
            ]
            self.guards.append((guard, [nn.Parameter(layout.view(guard.buffer)) for layout in placed]))
        else:
            for number, layout in enumerate(found):
                guard = Guarded(dtype, layout.length, number)
                self.guards.append((guard, [nn.Parameter(layout.view(guard.buffer))]))
        self.params = [parameter for _, own in self.guards for parameter in own]
        self.optimizer = AdaCoor(self.params, **path)
        self.twins = [Formula(parameter.detach(), **path) for parameter in self.params]

    def step(self, gradients: list[Layout], number: int, one_by_one: bool, bad: bool) -> None:
        buffers = []
        for place, (parameter, layout) in enumerate(zip(self.params, gradients, strict=True)):
            generator = torch.Generator().manual_seed(100 * number + place)
            buffer = decades((layout.length,), generator, -6, 0).to(self.dtype)
            parameter.grad = layout.view(buffer)
            if bad and parameter.numel():
                buffer[layout.offset] = float("nan")
            buffers.append((buffer, buffer.clone()))
        orders = [self._order_of(parameter) for parameter in self.params]
        if one_by_one:
            for parameter in self.params:
                self.optimizer.step_param(parameter)
        else:
            self.optimizer.step()
        for index, (parameter, twin) in enumerate(zip(self.params, self.twins, strict=True)):
            assert parameter.grad is not None
            twin.step(parameter.grad, index, orders[index])
        for buffer, before in buffers:
            assert torch.equal(buffer.view(torch.uint8), before.view(torch.uint8)), "a gradient was written to"

    def _order_of(self, parameter: nn.Parameter) -> list[int]:
        """8-bit codes are in the logical order; everything else is stepped as it is in memory, if possible."""
        if self.path.get("state_bits") == 8:
            return list(range(parameter.dim()))
        vt = self.optimizer.state.get(parameter, {}).get("vt")
        gradient = parameter if self.path.get("auto_lr") else parameter.grad  # which is copied to that order if need be
        return memory_order(parameter, gradient, torch.empty_like(parameter) if vt is None else vt)

    def check(self) -> None:
        for guard, views in self.guards:
            assert guard.changed_outside(*(view.detach() for view in views)) == 0
        # torch's kernels may differ in the last bit of a root between the middle and the end of a tensor
        close = {"rtol": 2e-6, "atol": 1e-7} if self.path.get("state_bits") == 32 or self.dtype == torch.float64 else {}
        if self.dtype in (torch.bfloat16, torch.float16):
            close = {}  # the formula itself is run
        for parameter, twin in zip(self.params, self.twins, strict=True):
            torch.testing.assert_close(parameter.detach(), twin.weights, **(close or {"rtol": 0, "atol": 0}))
        assert self.optimizer.skipped == sum(twin.skipped for twin in self.twins)


@st.composite
def parameters(draw: st.DrawFn) -> list[tuple[Layout, list[Layout]]]:
    """Up to four parameters, each with the layouts of its gradients in three steps."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(SHAPES)
        layout = draw(layouts(shape))
        follow = st.just(layout)
        found.append((layout, [draw(st.one_of(follow, layouts(shape, repeating=True))) for _ in range(3)]))
    return found


@pytest.mark.parametrize("path", PATHS, ids=str)
@settings(max_examples=40)
@given(
    found=parameters(),
    dtype=st.sampled_from(DTYPES),
    shared=st.booleans(),
    one_by_one=st.booleans(),
    bad=st.booleans(),
)
def test_any_layout_gives_the_twins_result_and_leaves_its_neighbours(
    path: dict[str, Any],
    found: list[tuple[Layout, list[Layout]]],
    dtype: torch.dtype,
    shared: bool,
    one_by_one: bool,
    bad: bool,
) -> None:
    case = Case([layout for layout, _ in found], dtype, path, shared)
    for number in range(3):
        case.step([gradients[number] for _, gradients in found], number, one_by_one, bad)
        case.check()


def strided(shape: tuple[int, int] = (300, 2)) -> tuple[torch.Tensor, nn.Parameter]:
    base = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return base, nn.Parameter(base[:, 0])


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_column_is_stepped_without_its_neighbour(path: dict[str, Any]) -> None:
    base, column = strided()
    neighbour, twin = base[:, 1].clone(), nn.Parameter(base[:, 0].clone())
    column.grad = torch.full((300, 3), 1e-3)[:, 1]
    twin.grad = torch.full((300,), 1e-3)
    AdaCoor([column], **path).step()
    AdaCoor([twin], **path).step()
    assert torch.equal(base[:, 1], neighbour)
    torch.testing.assert_close(base[:, 0], twin.detach(), rtol=1e-6, atol=1e-7)
    assert not torch.equal(column, torch.randn(300, 2, generator=torch.Generator().manual_seed(0))[:, 0])


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rows_of_one_tensor_are_parameters_of_their_own(path: dict[str, Any]) -> None:
    """As q, k and v of one projection: next to each other in memory, and none the worse for it."""
    whole = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    rows, twins = whole.clone().chunk(3), [part.clone() for part in whole.chunk(3)]
    params, twin_params = [nn.Parameter(row) for row in rows], [nn.Parameter(twin) for twin in twins]
    optimizer, twin_optimizer = AdaCoor(params, **path), AdaCoor(twin_params, **path)
    for step in range(3):
        for index, (parameter, twin) in enumerate(zip(params, twin_params, strict=True)):
            generator = torch.Generator().manual_seed(10 * step + index)
            parameter.grad = twin.grad = decades((10, 8), generator)
        optimizer.step()
        twin_optimizer.step()
    assert all(torch.equal(parameter, twin) for parameter, twin in zip(params, twin_params, strict=True))


# Parameters in one buffer of 48 elements, in the order in which they are stepped.
SHARED: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "the same": lambda base: [base[:20], base[:20]],
    "shifted": lambda base: [base[:20], base[3:23]],
    "strided last": lambda base: [base[:20], base[:40:2]],
    "strided between": lambda base: [base[:40], base[1:41:2], base[:20].view(4, 5).t(), base[4:24]],
    "transposed": lambda base: [base.view(6, 8), base.view(6, 8).t(), base[:3]],
    "rows and columns": lambda base: [base.view(6, 8)[:, 1], base.view(6, 8)[2], base.view(6, 8)[:, 1:3]],
    "channels-last": lambda base: [base[:6], base.as_strided((2, 4, 3, 2), (24, 1, 8, 4)), base],
}


def steps_of_shared(share: Callable[[Tensor], list[Tensor]], dtype: torch.dtype, by: str, path: dict[str, Any]) -> Any:
    """The buffer and the states after two steps, of all parameters together or one after the other."""
    base = torch.randn(48, generator=torch.Generator().manual_seed(0)).to(dtype)
    params = [nn.Parameter(view) for view in share(base)]
    optimizer = AdaCoor(params, **{"weight_decay": 100.0, **path})  # by which another order is another result
    for step in range(2):
        for index, parameter in enumerate(params):
            generator = torch.Generator().manual_seed(10 * step + index)
            parameter.grad = decades(tuple(parameter.shape), generator, -6, 0).to(dtype)
        for parameter in params if by == "step_param" else ():
            optimizer.step_param(parameter)
        if by == "step":
            optimizer.step()
    states = [optimizer.state[parameter] for parameter in params]
    return base, [value for state in states for value in state.values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_with_memory_in_common_are_stepped_one_after_the_other(
    path: dict[str, Any], shared: str, dtype: torch.dtype
) -> None:
    """Gathered and scattered back, all but the last of them would lose their step, or be stepped in another order."""
    (base, states), (twin, twin_states) = (
        steps_of_shared(SHARED[shared], dtype, by, path) for by in ("step", "step_param")
    )
    assert torch.equal(base, twin)
    assert all(torch.equal(one, other) for one, other in zip(states, twin_states, strict=True))


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [{}, {"state_bits": 8}, {"auto_lr": True, "momentum": 0.9}], ids=str)
def test_gathering_changes_nothing_for_memory_in_common(width: dict[str, Any], shared: str, dtype: torch.dtype) -> None:
    plain, gathered = (
        steps_of_shared(SHARED[shared], dtype, "step", {**width, "foreach": foreach}) for foreach in (False, True)
    )
    assert torch.equal(plain[0], gathered[0])
    assert all(torch.equal(one, other) for one, other in zip(plain[1], gathered[1], strict=True))


@pytest.mark.parametrize("path", [{}, {"state_bits": 32}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("size", [1, 300])
def test_a_gradient_with_a_pending_sign(path: dict[str, Any], size: int) -> None:
    """The imaginary part of a conjugate holds the negated values until somebody asks."""
    values = torch.randn(size, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    results = []
    for lazy in (True, False):
        gradient = values.conj().imag
        assert gradient.is_neg()
        parameter = nn.Parameter(torch.ones(size))
        parameter.grad = gradient if lazy else gradient.resolve_neg()
        AdaCoor([parameter], **path).step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


def test_weights_that_share_their_memory_among_themselves_are_refused() -> None:
    for weights in (torch.ones(1).expand(5), torch.ones(9).as_strided((4, 3), (1, 1))):
        said = rf"parameter 1 .*shape {re.escape(str(tuple(weights.shape)))}.*stride {re.escape(str(weights.stride()))}"
        with pytest.raises(ValueError, match=said + " elements share memory"):
            AdaCoor([torch.ones(3), nn.Parameter(weights)])
    AdaCoor([torch.ones(0, 3).expand(0, 3), torch.ones(4, 1).expand(4, 1), torch.ones(4, 6)[::2, ::3].t()])


@pytest.mark.parametrize("by", ["step", "step_param"])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("path", [*PATHS, {"fused": True}], ids=str)
def test_weights_that_come_to_share_their_memory_are_refused(path: dict[str, Any], started: bool, by: str) -> None:
    """Copied back, only the last of the elements in one place would have had a step."""
    first, second = nn.Parameter(torch.ones(20)), nn.Parameter(torch.ones(4, 3))
    optimizer = AdaCoor([first, second], **path)
    for step in range(2 if started else 1):
        first.grad, second.grad = torch.ones(20), torch.ones(4, 3)
        if step < started:
            optimizer.step()
    second.data = torch.ones(9).as_strided((4, 3), (1, 1))
    before = first.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(RuntimeError, match=r"parameter 1 has shape \(4, 3\) and stride \(1, 1\) now.*share memory"):
        optimizer.step() if by == "step" else optimizer.step_param(second)
    assert torch.equal(first, before[0]) and torch.equal(second, torch.ones(4, 3))
    torch.testing.assert_close(optimizer.state_dict()["state"], before[1], rtol=0, atol=0)


@pytest.mark.parametrize("path", [*PATHS, {"fused": True}], ids=str)
def test_a_refused_gradient_is_found_before_any_weight_has_moved(path: dict[str, Any]) -> None:
    first, table = nn.Parameter(torch.ones(20)), nn.Embedding(5, 2, sparse=True)
    optimizer = AdaCoor([first, *table.parameters()], **path)
    first.grad = torch.ones(20)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"gradient of parameter 1.*sparse"):
        optimizer.step()
    assert torch.equal(first, torch.ones(20))
    assert not optimizer.state
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step_param(table.weight)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_weights_that_have_changed_their_shape_are_refused(path: dict[str, Any]) -> None:
    """torch's kernel would go on beyond the end of the shorter one."""
    parameter = nn.Parameter(torch.ones(20, 3))
    optimizer = AdaCoor([parameter], **path)
    parameter.grad = torch.ones(20, 3)
    optimizer.step()
    parameter.grad = None
    parameter.data = torch.ones(40, 3)
    parameter.grad = torch.ones(40, 3)
    with pytest.raises(RuntimeError, match=r"parameter 0 has shape \(40, 3\) now.*accumulator"):
        optimizer.step()
    assert torch.equal(parameter, torch.ones(40, 3))


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 1), reason="torch 2.0 cannot compile this, and AdaCoor says so")
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "path",
    [{}, {"state_bits": 32}, {"stochastic_state": True}, {"state_bits": 8}, {"auto_lr": True, "momentum": 0.9}],
    ids=str,
)
def test_compiled_steps_of_any_layout(path: dict[str, Any]) -> None:
    """Also of parameters that are in one storage, next to each other or one over the other."""
    base = torch.randn(5 * 6000, generator=torch.Generator().manual_seed(0))
    views = [
        base[:6000].view(60, 100),
        base[6000:12000].view(60, 100),
        base[12000:24000].view(6000, 2)[:, 1],
        base[24000:].view(10, 8, 5, 15).permute(0, 3, 1, 2),
        base[3000:9000],
        base[13000:20000],
    ]
    for chosen in (views[:2], views[:4], views[:5], views, views[::-1]):
        results = []
        for fused in (True, False):
            buffer = base.clone()
            params = [
                nn.Parameter(buffer.as_strided(view.shape, view.stride(), view.storage_offset())) for view in chosen
            ]
            optimizer = AdaCoor(params, fused=fused, **path)
            for step in range(3):
                for index, parameter in enumerate(params):
                    generator = torch.Generator().manual_seed(10 * step + index)
                    gradient = decades(tuple(parameter.shape), generator, -6, 0)
                    parameter.grad = gradient if step else gradient[..., :1].expand_as(parameter)
                optimizer.step()
            results.append(buffer)
        tolerance = 1e-6 if path.get("state_bits") in (8, 32) else 0.0  # another root, in its last bit
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
        outside = torch.ones_like(base, dtype=torch.bool)
        for view in chosen:
            outside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
        assert torch.equal(results[0][outside], base[outside])
