"""Two real processes under gloo: the same gradients give the same bits on both, random rounding included."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from kohya_ext.optim import AdaCoor

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")]


MODES: tuple[dict[str, Any], ...] = (
    {"stochastic_state": True, "seed": 5},
    {"state_bits": 8},
    {"state_bits": 32},
    {"auto_lr": True, "momentum": 0.9},
)


def _train(rank: int, port: int, folder: str, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Linear(40, 30).to(torch.bfloat16)
    optimizer = AdaCoor(model.parameters(), **settings)
    torch.manual_seed(100 + rank)  # each rank sees other data, and other global random numbers
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 40, dtype=torch.bfloat16)).pow(2).sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            dist.all_reduce(gradient)
            parameter.grad = (gradient / 2 * 1e-3).to(torch.bfloat16)
        optimizer.step()
    torch.save((model.state_dict(), optimizer.state_dict()["state"]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("settings", MODES, ids=str)
def test_two_ranks_keep_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_train, args=(port, str(tmp_path), settings), nprocs=2)
    (first, first_state), (second, second_state) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for key, state in first_state.items():
        assert state.keys() == second_state[key].keys()
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(second_state[key][name]))
            for name, value in state.items()
        )
