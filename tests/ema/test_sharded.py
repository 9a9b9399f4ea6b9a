"""The EMA of weights that `fully_shard` has divided among real processes is that of whole ones, bit for bit."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from kohya_ext.ema import Shadow, checkpoint, constant, debiased, gathering, relative_distance
from kohya_ext.tensors.elements import local

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
    pytest.mark.skipif(torch.__version__ < (2, 6), reason="fully_shard is in torch.distributed.fsdp since 2.6"),
]

STEPS = 4
FREE_PORT = 0
# the rows of no layer are a multiple of 2 and 3 alike, and one bias has a single element
WIDTHS = (7, 5, 4, 1)
# (dtype of the weights, of the EMA): the swap has a way of its own for each of them
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]


class Outcome(NamedTuple):
    """What the run of one pair of dtypes showed on one process. history: the whole weights after each step."""

    history: list[dict[str, Tensor]]
    averages: list[dict[str, Tensor]]
    kept: int
    messages: int
    sampled: Tensor
    restored: bool
    afterwards: Tensor
    distance: float


def model_of(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(first, second) for first, second in itertools.pairwise(WIDTHS)]
    return nn.Sequential(*layers).to(dtype)


def batch(step: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(6, WIDTHS[0], generator=torch.Generator().manual_seed(step)).to(dtype)


def shadows_of(model: nn.Module, average: torch.dtype) -> list[Shadow]:
    return [
        Shadow(model.named_parameters(), schedule, dtype=average, stochastic=average == torch.bfloat16)
        for schedule in (debiased(0.9), constant(0.5))
    ]


def whole(tensor: Any) -> Tensor:
    full: Tensor = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
    return full


def divided(model: nn.Sequential, mesh: Any) -> nn.Sequential:
    """All but the layer in the middle, whose weights stay whole on each process."""
    from torch.distributed.fsdp import fully_shard

    plain = set(model[1].parameters())
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=plain)
    return model


def train(model: nn.Module, shadows: Sequence[Shadow], steps: range, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    history = []
    for shadow in shadows:
        shadow.capture()
    for step in steps:
        optimizer.zero_grad()
        model(batch(step, dtype)).pow(2).sum().backward()
        optimizer.step()
        shadows[0].update(*shadows[1:])
        history.append({name: whole(parameter) for name, parameter in model.named_parameters()})
    return history


def parts(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [local(parameter).detach().clone() for parameter in model.parameters()]


def one_run(mesh: Any, folder: Path, dtypes: tuple[torch.dtype, torch.dtype], number: int) -> Outcome:
    from torch.distributed.tensor.debug import CommDebugMode

    model = divided(model_of(dtypes[0]), mesh)
    shadows = shadows_of(model, dtypes[1])
    history = train(model, shadows, range(STEPS - 1), dtypes[0])
    model(batch(0, dtypes[0])).sum().backward()  # as after an evaluation, some weights may be put together
    with CommDebugMode() as counted:
        for shadow in shadows:
            shadow.update()
    history.append(history[-1])
    raw = parts(model)
    with gathering.swapped(shadows[0], model), torch.no_grad():
        sampled = model(batch(0, dtypes[0])).float()
    restored = all(torch.equal(before, after) for before, after in zip(raw, parts(model), strict=True))
    with torch.no_grad():  # leaves some weights put together, so only now
        again = model(batch(0, dtypes[0])).float()
    gathering.save(folder / f"{number}.safetensors", shadows[0])
    return Outcome(
        history,
        [dict(gathering.whole_averages(shadow)) for shadow in shadows],
        sum(average.numel() for _, _, average in shadows[0].pairs()),
        counted.get_total_counts(),
        sampled,
        restored,
        again,
        relative_distance(shadows[0]),
    )


def begin(rank: int, ranks: int, port: int) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    return dist.init_device_mesh("cpu", (ranks,))


def runs(rank: int, ranks: int, port: int, folder: str) -> None:
    mesh = begin(rank, ranks, port)
    found = [one_run(mesh, Path(folder), dtypes, number) for number, dtypes in enumerate(DTYPES)]
    torch.save([tuple(outcome) for outcome in found], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def on_processes(work: Any, ranks: int, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", FREE_PORT))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(ranks, port, str(folder)), nprocs=ranks)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sharded")
    on_processes(runs, request.param, made)
    return made


def outcomes(folder: Path, number: int) -> list[Outcome]:
    return [Outcome(*torch.load(file)[number]) for file in sorted(folder.glob("*.pt"))]


def replayed(history: Sequence[dict[str, Tensor]], average: torch.dtype, dtype: torch.dtype) -> list[Shadow]:
    """The twin: one process, whole tensors, the same weights after each step."""
    model = model_of(dtype)
    twins = shadows_of(model, average)
    for twin in twins:
        twin.capture()
    for weights in history:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        twins[0].update(*twins[1:])
    return twins


@pytest.mark.parametrize("number", range(len(DTYPES)), ids=lambda number: " ".join(map(str, DTYPES[number])))
def test_each_process_keeps_its_part_and_together_they_are_the_average(folder: Path, number: int) -> None:
    dtype, average = DTYPES[number]
    found = outcomes(folder, number)
    weights = found[0].history[-1]
    divided_ones = sum(tensor.numel() for name, tensor in weights.items() if not name.startswith("1."))
    replicated = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("1."))
    assert sum(outcome.kept for outcome in found) == divided_ones + len(found) * replicated
    twins = replayed(found[0].history, average, dtype)
    for outcome in found:
        assert outcome.messages == 0
        for twin, own in zip(twins, outcome.averages, strict=True):
            for name, _, expected in twin.pairs():
                if average == torch.bfloat16:  # rounded at random, in each part by itself
                    torch.testing.assert_close(own[name], expected, rtol=0.04, atol=1e-3)
                else:
                    assert torch.equal(own[name], expected)


@pytest.mark.parametrize("number", range(len(DTYPES)), ids=lambda number: " ".join(map(str, DTYPES[number])))
def test_samples_are_of_the_average_and_raw_weights_come_back(folder: Path, number: int) -> None:
    dtype, _ = DTYPES[number]
    close = {"rtol": 0.02, "atol": 0.01} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for outcome in outcomes(folder, number):
        assert outcome.restored
        assert outcome.distance > 0
        twin = model_of(dtype)
        twin.load_state_dict(outcome.history[-1])
        torch.testing.assert_close(outcome.afterwards, twin(batch(0, dtype)).detach().float(), **close)
        twin.load_state_dict({name: value.to(dtype) for name, value in outcome.averages[0].items()})
        torch.testing.assert_close(outcome.sampled, twin(batch(0, dtype)).detach().float(), **close)


def resumed(rank: int, ranks: int, port: int, folder: str) -> None:
    mesh = begin(rank, ranks, port)
    for number, (dtype, average) in enumerate(DTYPES):
        model = divided(model_of(dtype), mesh)
        shadow = shadows_of(model, average)[0]
        assert shadow.load_state_dict(checkpoint.load(Path(folder) / f"{number}.safetensors")) == []
        shadow.load_state_dict(shadow.state_dict())  # as sharded tensors
        averages = dict(gathering.whole_averages(shadow))
        train(model, [shadow], range(1), dtype)
        torch.save((averages, shadow.step), Path(folder) / f"resumed-{number}-{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_state_goes_on_with_any_number_of_processes(folder: Path, ranks: int) -> None:
    on_processes(resumed, ranks, folder)
    for number in range(len(DTYPES)):
        saved = checkpoint.load(folder / f"{number}.safetensors")
        assert saved["step"] == STEPS
        for rank in range(ranks):
            averages, steps = torch.load(folder / f"resumed-{number}-{rank}.pth")
            assert steps == STEPS + 1
            for name, average in outcomes(folder, number)[0].averages[0].items():
                assert torch.equal(saved["shadow"][name], average)
                assert torch.equal(averages[name], average)


def refusals(rank: int, ranks: int, port: int, folder: str) -> None:
    mesh = begin(rank, ranks, port)
    model = divided(model_of(torch.float32), mesh)
    shadow = shadows_of(model, torch.float32)[0]
    shadow.capture()
    with pytest.raises(RuntimeError, match="divided among processes"):
        checkpoint.save(Path(folder) / "part.safetensors", shadow.state_dict())
    with pytest.raises(OSError, match="No such file"):  # on all of them, though one alone writes
        gathering.save(Path(folder) / "missing" / "whole.safetensors", shadow)
    with pytest.raises(ValueError, match="sharded in another way"):
        shadows_of(model_of(torch.float32), torch.float32)[0].load_state_dict(shadow.state_dict())
    assert len(dict(gathering.whole_averages(shadow))) == len(list(model.parameters()))  # nobody waits for anybody
    (Path(folder) / f"{rank}.done").touch()
    dist.destroy_process_group()


def test_a_part_is_never_written_as_the_whole(tmp_path: Path) -> None:
    on_processes(refusals, 2, tmp_path)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["0.done", "1.done"]
