"""The trajectory: bit for bit the published one, and to 1e-12 that of torch's Adagrad."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kohya_ext.optim import AdaCoor
from kohya_ext.optim.plan import gathers
from kohya_ext.tensors import elements
from tests.optim.reference import Exact, decades, published_step

SHAPES = [(1,), (3,), (257,), (5, 7), (64, 33), (4, 3, 3, 3), (), (0,), (700, 500)]
PATHS: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False, "fused": False}]


def params_of(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        parameter.grad = decades(tuple(parameter.shape), generator).to(parameter.dtype)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_default_is_the_published_trajectory_bit_for_bit(path: dict[str, Any]) -> None:
    shapes = [shape for shape in SHAPES if shape != (700, 500)]
    params = params_of(shapes)
    twins = [parameter.detach().clone() for parameter in params]
    vts = [torch.zeros_like(twin, dtype=torch.bfloat16) for twin in twins]
    optimizer = AdaCoor(params, **path)
    for step in range(1000):
        set_gradients(params, step)
        optimizer.step()
        for parameter, twin, vt in zip(params, twins, vts, strict=True):
            assert parameter.grad is not None
            published_step(twin, parameter.grad, vt)
    for parameter, twin, vt in zip(params, twins, vts, strict=True):
        assert torch.equal(parameter, twin)
        if parameter.numel():
            assert torch.equal(optimizer.state[parameter]["vt"], vt)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_slicing_does_not_change_a_bit(path: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of(SHAPES)
    twins = [parameter.detach().clone() for parameter in params]
    vts = [torch.zeros_like(twin, dtype=torch.bfloat16) for twin in twins]
    monkeypatch.setattr(elements, "CPU_SLICE", 1000)
    optimizer = AdaCoor(params, **path)
    for step in range(5):
        set_gradients(params, step)
        optimizer.step()
        for parameter, twin, vt in zip(params, twins, vts, strict=True):
            assert parameter.grad is not None
            published_step(twin, parameter.grad, vt)
    assert all(torch.equal(parameter, twin) for parameter, twin in zip(params, twins, strict=True))


@pytest.mark.parametrize("maximize", [False, True])
def test_float64_weights_follow_the_definition_and_torchs_adagrad(maximize: bool) -> None:
    params, twins = params_of(SHAPES[:6], torch.float64), params_of(SHAPES[:6], torch.float64)
    exact = [Exact(parameter.detach()) for parameter in params]
    optimizer = AdaCoor(params, maximize=maximize)
    adagrad = torch.optim.Adagrad(twins, lr=1e-4, eps=1e-4, maximize=maximize, foreach=False)
    for step in range(1000):
        set_gradients(params, step)
        for parameter, twin, definition in zip(params, twins, exact, strict=True):
            assert parameter.grad is not None
            twin.grad = parameter.grad
            definition.step(-parameter.grad if maximize else parameter.grad)
        optimizer.step()
        adagrad.step()
    for parameter, twin, definition in zip(params, twins, exact, strict=True):
        vt = optimizer.state[parameter]["vt"]
        assert vt.dtype == torch.float64
        torch.testing.assert_close(parameter, twin, rtol=1e-12, atol=0)
        torch.testing.assert_close(parameter.detach(), definition.weights, rtol=1e-12, atol=0)
        torch.testing.assert_close(vt, definition.total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("settings", [{}, {"vt_rate": 0.5}, {"weight_decay": 100.0}, {"eps": 1e-4}], ids=str)
def test_32_bits_follow_the_exact_twin(path: dict[str, Any], settings: dict[str, Any]) -> None:
    params = params_of([(64, 33)])
    exact = Exact(params[0].detach(), **settings)
    optimizer = AdaCoor(params, state_bits=32, **path, **settings)
    for step in range(200):
        set_gradients(params, step)
        optimizer.param_groups[0]["lr"] = lr = 1.0 / (1 + step % 3)
        optimizer.step()
        assert params[0].grad is not None
        exact.step(params[0].grad, lr)
    torch.testing.assert_close(optimizer.state[params[0]]["vt"].double(), exact.total, rtol=1e-4, atol=0)
    torch.testing.assert_close(params[0].detach().double(), exact.weights, rtol=1e-5, atol=1e-6)


def test_lr_multiplies_the_update_of_its_group() -> None:
    moved = []
    for lr in (1.0, 0.25):
        params = params_of([(50,), (50,)])
        before = [parameter.detach().clone() for parameter in params]
        optimizer = AdaCoor([{"params": params[:1]}, {"params": params[1:], "lr": lr}])
        set_gradients(params, 3)
        optimizer.step()
        moved.append([parameter.detach() - start for parameter, start in zip(params, before, strict=True)])
    assert torch.equal(moved[0][0], moved[1][0])
    torch.testing.assert_close(moved[1][1], 0.25 * moved[0][1], rtol=1e-2, atol=1e-7)


def test_weight_decay_is_decoupled_at_adagrads_rate() -> None:
    params = params_of([(50,)])
    before = params[0].detach().clone()
    params[0].grad = torch.zeros(50)
    AdaCoor(params, lr=0.5, weight_decay=10.0).step()
    torch.testing.assert_close(params[0].detach(), before * (1 - 0.5 * 1e-4 * 10.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_gradients_are_squared_in_float32(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(8, dtype=dtype))
    optimizer = AdaCoor([parameter])
    parameter.grad = torch.full((8,), 1e-5, dtype=dtype)  # its square is 0 in float16
    optimizer.step()
    vt = optimizer.state[parameter]["vt"]
    assert vt.dtype == torch.bfloat16
    torch.testing.assert_close(vt.float(), torch.full((8,), 1e-18), rtol=0.02, atol=0)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("settings", [{}, {"state_bits": 32}, {"state_bits": 8}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unusable_element_leaves_its_weight_and_state(
    fault: float, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """Also with weight decay; all others go on as if nothing had happened."""
    params, twins = params_of([(600,), (20,)], dtype), params_of([(600,), (20,)], dtype)
    optimizer = AdaCoor(params, weight_decay=10.0, **settings)
    twin_optimizer = AdaCoor(twins, weight_decay=10.0, **settings)
    set_gradients(params, 1)
    set_gradients(twins, 1)
    for parameter in params:
        assert parameter.grad is not None
        parameter.grad[7] = fault
    before = [parameter.detach().clone() for parameter in params]
    for twin in twins:
        assert twin.grad is not None
        twin.grad[7] = 0.0
    optimizer.step()
    twin_optimizer.step()
    for parameter, twin, start in zip(params, twins, before, strict=True):
        assert parameter[7] == start[7]
        others = torch.arange(len(parameter)) != 7
        assert torch.equal(parameter[others], twin[others])
        assert torch.equal(optimizer.state[parameter]["vt"], twin_optimizer.state[twin]["vt"])
    assert optimizer.skipped == 2
    assert twin_optimizer.skipped == 0


def test_a_channels_last_weight_may_have_any_gradient_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    for bits in (None, 32, 8):
        settings: dict[str, Any] = {} if bits is None else {"state_bits": bits}
        plain = nn.Parameter(torch.randn(4, 3, 5, 5, generator=generator))
        gradient = torch.randn(4, 3, 5, 5, generator=generator) * 1e-4
        results = []
        for weights_last in (False, True):
            for gradient_last in (False, True):
                layout = {False: torch.contiguous_format, True: torch.channels_last}
                parameter = nn.Parameter(plain.detach().clone(memory_format=layout[weights_last]))
                parameter.grad = gradient.clone(memory_format=layout[gradient_last])
                optimizer = AdaCoor([parameter], foreach=True, **settings)
                optimizer.step()
                results.append(parameter.detach())
        assert not torch.equal(results[0], plain)
        if bits != 8:
            assert all(torch.equal(results[0], result) for result in results[1:])


def test_closures_groups_without_gradients_and_hooks_work() -> None:
    params = params_of([(4,), (4,)])
    optimizer = AdaCoor([{"params": params[:1]}, {"params": params[1:], "eps": 1e-6}])
    calls: list[str] = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss is not None
    assert calls == ["post"]
    assert params[1] not in optimizer.state


def test_step_param_equals_step() -> None:
    settings: dict[str, Any] = {"state_bits": 16, "stochastic_state": True}
    params, twins = params_of(SHAPES, torch.bfloat16), params_of(SHAPES, torch.bfloat16)
    optimizer = AdaCoor([{"params": params[:4]}, {"params": params[4:], "lr": 0.5}], **settings)
    fused = AdaCoor([{"params": twins[:4]}, {"params": twins[4:], "lr": 0.5}], **settings)
    stale = fused.param_groups[1]
    for step in range(4):
        set_gradients(params, step)
        set_gradients(twins, step)
        optimizer.step()
        for twin in reversed(twins):
            fused.step_param(twin, stale)
        if step == 1:
            fused.load_state_dict(fused.state_dict())
            optimizer.param_groups[1]["lr"] = fused.param_groups[1]["lr"] = 0.125
    assert stale is not fused.param_groups[1]
    assert all(torch.equal(parameter, twin) for parameter, twin in zip(params, twins, strict=True))
    with pytest.raises(ValueError, match="not one of"):
        stranger = nn.Parameter(torch.ones(2))
        stranger.grad = torch.ones(2)
        fused.step_param(stranger)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"lr": -1.0}, ValueError),
        ({"lr": "1"}, TypeError),
        ({"eps": 0.0}, ValueError),
        ({"eps": float("nan")}, ValueError),
        ({"weight_decay": -0.1}, ValueError),
        ({"vt_rate": True}, TypeError),
        ({"state_bits": 4}, ValueError),
        ({"state_bits": True}, ValueError),
        ({"stochastic_state": 1}, TypeError),
        ({"stochastic_weights": None}, TypeError),
        ({"seed": 1.5}, TypeError),
        ({"maximize": 0}, TypeError),
        ({"foreach": "yes"}, TypeError),
        ({"fused": 1}, TypeError),
        ({"stochastic_state": True, "state_bits": 32}, ValueError),
        ({"foreach": True, "fused": True}, ValueError),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_by_name(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(settings))):
        AdaCoor(params_of([(3,)]), **settings)
    optimizer = AdaCoor(params_of([(3,)]))
    with pytest.raises(error, match=next(iter(settings))):
        optimizer.add_param_group({"params": params_of([(3,)]), **settings})
    assert len(optimizer.param_groups) == 1


def test_parameters_it_cannot_train_are_refused_by_name() -> None:
    good = torch.ones(3)
    for bad, message in (
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.ones(2, dtype=torch.int32), "integers"),
    ):
        with pytest.raises(TypeError, match=message) as caught:
            AdaCoor([good, bad])
        assert "parameter 1" in str(caught.value)
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        AdaCoor(embedding.parameters()).step()


def test_small_tensors_are_gathered_on_a_gpu_and_next_to_compiled_steps_unless_told_otherwise() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert gathers(None, None, gpu)
    assert gathers(None, True, gpu) and gathers(None, True, cpu)
    assert not gathers(False, True, cpu)
    assert not gathers(False, None, gpu)
    assert not gathers(None, None, cpu)
    assert gathers(True, None, cpu)
