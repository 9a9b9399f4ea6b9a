"""Numbers and tensors of other kinds than usual: scalars for `lr`, fake tensors, sharded ones."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._subclasses import FakeTensorMode

from kohya_ext.optim import AdaCoor, blockwise
from kohya_ext.tensors.elements import CPU_SLICE

SETTINGS: list[dict[str, Any]] = [
    {},
    {"stochastic_state": True},
    {"state_bits": 32},
    {"state_bits": 8},
    {"foreach": True},
    {"auto_lr": True},
    {"auto_lr": True, "momentum": 0.9, "state_bits": 8},
    {"auto_lr": True, "momentum": 0.9, "foreach": True},
]


def after_one_step(lr: Any) -> torch.Tensor:
    parameter = nn.Parameter(torch.ones(50))
    optimizer = AdaCoor([parameter], lr=lr)
    parameter.grad = torch.full((50,), 1e-3)
    optimizer.step()
    return parameter.detach()


def test_scalars_of_torch_and_numpy_are_rates() -> None:
    numpy = pytest.importorskip("numpy")
    wanted = after_one_step(0.5)
    for lr in (torch.tensor(0.5), torch.tensor([0.5], dtype=torch.float64), numpy.float32(0.5), numpy.float64(0.5)):
        assert torch.equal(after_one_step(lr), wanted)
    for lr in (torch.tensor([0.5, 0.5]), torch.tensor(True), torch.tensor(1j), numpy.array([0.5, 1.0])):
        with pytest.raises(TypeError, match="lr must be a number"):
            after_one_step(lr)
    for bad in (torch.tensor(-1.0), torch.tensor(float("nan")), numpy.float32(-1)):
        with pytest.raises(ValueError, match="lr must be a finite number"):
            after_one_step(bad)


def test_a_state_with_numbers_of_numpy_is_read_without_unpickling(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    given = {name: numpy.float64(0.5) for name in ("lr", "eps", "weight_decay", "vt_rate", "momentum")}
    optimizer = AdaCoor([nn.Parameter(torch.ones(50))], **given)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    [group] = torch.load(tmp_path / "state.pt", weights_only=True)["param_groups"]
    assert all(type(group[name]) is float and group[name] == 0.5 for name in given)


def test_a_rate_in_a_tensor_may_change_in_place() -> None:
    lr = torch.tensor(0.5)
    parameter = nn.Parameter(torch.ones(50))
    optimizer = AdaCoor([parameter], lr=lr)
    parameter.grad = torch.full((50,), 1e-3)
    optimizer.step()
    moved = parameter.detach().clone()
    lr.fill_(0.0)
    optimizer.step()
    assert torch.equal(parameter, moved)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_tensors_are_stepped_and_leave_nothing_behind(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """As in a trace of a run's memory: shapes and types of the state are those of a real run."""
    shapes = [(700, 50), (30,), ()]
    with FakeTensorMode():
        params = [nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in shapes]
        optimizer = AdaCoor(params, **settings)
        for parameter in params:
            parameter.grad = torch.empty_like(parameter)
        for _ in range(2):
            optimizer.step()
        optimizer.step_param(params[0])
    assert not optimizer._sliced._scratch._buffers  # a trace would take scratch memory for a part of the state
    twins = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    real = AdaCoor(twins, **settings)
    for twin in twins:
        twin.grad = torch.full_like(twin, 1e-3)
    real.step()
    for parameter, twin in zip(params, twins, strict=True):
        kinds = [
            {name: (value.shape, value.dtype) for name, value in state.items() if isinstance(value, torch.Tensor)}
            for state in (optimizer.state[parameter], real.state[twin])
        ]
        assert kinds[0] == kinds[1]


@pytest.mark.skipif(not hasattr(torch, "_disable_dynamo"), reason="torch 2.0 cannot leave a function alone")
@pytest.mark.skipif(sys.version_info >= (3, 12) and torch.__version__ < (2, 4), reason="torch cannot compile here")
@pytest.mark.parametrize("by", ["step", "step_param"])
@pytest.mark.parametrize("settings", [*SETTINGS, {"fused": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_a_user_compiles_has_its_bits(settings: dict[str, Any], dtype: torch.dtype, by: str) -> None:
    """torch traced it: other random bits, an error at its own Adagrad kernel, minutes of compiling with 8 bits."""
    traced: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    ours, twins = ([nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((70, 50), (9000,), ())] for _ in "12")
    optimizer, twin = AdaCoor(ours, **settings), AdaCoor(twins, **settings)
    calls: dict[str, Any] = {
        "step": lambda: optimizer.step(),
        "step_param": lambda: [optimizer.step_param(parameter) for parameter in ours],
    }
    compiled = torch.compile(calls[by], backend=backend)
    for step in range(3):
        for index, (parameter, other) in enumerate(zip(ours, twins, strict=True)):
            generator = torch.Generator().manual_seed(10 * step + index)
            parameter.grad = other.grad = torch.randn(parameter.shape, generator=generator).mul(1e-3).to(dtype)
        compiled()
        twin.step()
    assert not traced
    assert all(torch.equal(parameter, other) for parameter, other in zip(ours, twins, strict=True))


def test_a_parameter_is_found_after_its_groups_have_changed() -> None:
    """The settings of a step are those of the group that it is in now, and its index decides about random bits."""
    first, second, third = (nn.Parameter(torch.ones(50)) for _ in range(3))
    optimizer = AdaCoor([{"params": [first]}, {"params": [second, third], "lr": 0.0}])
    for parameter in (first, second, third):
        parameter.grad = torch.full((50,), 1e-3)
        optimizer.step_param(parameter)
    optimizer.param_groups.reverse()
    before = first.detach().clone()
    for parameter in (first, second, third):
        optimizer.step_param(parameter)
        assert optimizer._place_of(parameter) == {first: (1, 2), second: (0, 0), third: (0, 1)}[parameter]
    assert torch.equal(second, torch.ones(50)) and not torch.equal(first, before)
    optimizer.param_groups[0]["params"].remove(second)
    assert [optimizer._place_of(parameter) for parameter in (first, third)] == [(1, 1), (0, 0)]
    with pytest.raises(ValueError, match="not one of this optimizer's"):
        optimizer.step_param(second)


SHARDED = [*SETTINGS[:4], {"auto_lr": True, "momentum": 0.9}, {"auto_lr": True, "state_bits": 8}]


def _train_sharded(rank: int, port: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    found = []
    for settings in SHARDED:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 31), nn.Tanh(), nn.Linear(31, 1))
        fully_shard(model, mesh=mesh)
        optimizer = AdaCoor(model.parameters(), **settings)
        for step in range(4):
            optimizer.zero_grad()
            torch.manual_seed(step)
            model(torch.randn(8, 40)).pow(2).sum().backward()
            optimizer.step()
            if step == 1:
                optimizer.load_state_dict(optimizer.state_dict())
        weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
        found.append([weight.detach() for weight in weights])
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.skipif(torch.__version__ < (2, 6), reason="fully_shard is in torch.distributed.fsdp since 2.6")
def test_sharded_weights_are_stepped_as_whole_ones(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_train_sharded, args=(port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, settings in enumerate(SHARDED):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 31), nn.Tanh(), nn.Linear(31, 1))
        start = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = AdaCoor(model.parameters(), **settings)
        for step in range(4):
            optimizer.zero_grad()
            torch.manual_seed(step)
            model(torch.randn(8, 40)).pow(2).sum().backward()
            optimizer.step()
        for left, right, whole, before in zip(
            ranks[0][number], ranks[1][number], model.parameters(), start, strict=True
        ):
            assert torch.equal(left, right)
            # random bits and distances are those of each part
            torch.testing.assert_close(left - before, whole.detach() - before, rtol=0.2, atol=3e-5)


@pytest.mark.parametrize(("fake", "calls"), [(False, 3), (True, 1)])
def test_one_slice_of_a_tensor_without_contents(monkeypatch: pytest.MonkeyPatch, fake: bool, calls: int) -> None:
    """The others would take the memory of the first again, and a model of billions of weights has ten thousand."""
    seen: list[int] = []
    step = blockwise.step_

    def counted(piece: torch.Tensor, *more: Any) -> Any:
        seen.append(piece.numel())
        return step(piece, *more)

    monkeypatch.setattr(blockwise, "step_", counted)
    with FakeTensorMode() if fake else contextlib.nullcontext():
        weight = torch.nn.Parameter(torch.zeros(2 * CPU_SLICE + 1))
        weight.grad = torch.ones_like(weight)
        AdaCoor([weight], state_bits=8, momentum=0.5).step()
    assert seen == [CPU_SLICE, CPU_SLICE, 1][:calls]
