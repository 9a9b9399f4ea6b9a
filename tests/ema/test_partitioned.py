"""The EMA of divided parameters is that of whole ones, for any division, and its files suit any other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kohya_ext.ema import Shadow, checkpoint, debiased
from kohya_ext.ema.fragments import Fragment, Place, cut, plan
from kohya_ext.ema.partitioned import WEIGHTS, Partition
from kohya_ext.ema.peers import PeerError
from tests.ema.divided import TOKEN, each_by_itself, on_ranks, one_flat_tensor, partitions

Divide = Callable[[dict[str, Tensor], int], list[list[Fragment]]]
SHAPES = {"a": (5, 7), "b": (3,), "scalar": (), "c": (2, 3, 4), "none": (0, 4)}
DIVISIONS = pytest.mark.parametrize("divide", [one_flat_tensor, each_by_itself])


def weights_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items() if name != "none"}


@pytest.fixture
def made() -> Iterator[list[Partition]]:
    kept: list[Partition] = []
    yield kept
    for partition in kept:
        partition.peers.close()


def train(ranks: list[Partition], shadows: list[Shadow], steps: range) -> None:
    for step in steps:
        whole = weights_of(step)
        for partition, shadow in zip(ranks, shadows, strict=True):
            shadow.capture()
            for fragment, elements in cut(whole, partition.fragments):
                fragment.weights.copy_(elements)
            shadow.update()
            partition.peers.advance()


def shadows_of(ranks: list[Partition]) -> list[Shadow]:
    shadows = [Shadow(partition.averaged(), debiased(0.9), frozen_too=True) for partition in ranks]
    for partition, shadow in zip(ranks, shadows, strict=True):
        partition.keep("ema", shadow)
    return shadows


def by_hand(steps: range) -> dict[str, Tensor]:
    """The debiased EMA in float64."""
    total, sums = 0.0, {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in weights_of(0).items()}
    for step in steps:
        total = 0.9 * total + 0.1
        sums = {name: 0.9 * sums[name] + 0.1 * tensor.double() for name, tensor in weights_of(step).items()}
    return {name: tensor / total for name, tensor in sums.items()}


@DIVISIONS
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_every_rank_reads_the_ema_of_the_whole_weights(divide: Divide, count: int, made: list[Partition]) -> None:
    made += partitions(divide(weights_of(0), count))
    train(made, shadows_of(made), range(1, 9))

    def read(rank: int) -> dict[str, dict[str, Tensor]]:
        wholes = made[rank].wholes(averaged_only=True)
        names = [whole.name for whole in wholes]
        return {
            kind: dict(zip(names, made[rank].whole_tensors(kind, wholes), strict=True)) for kind in (WEIGHTS, "ema")
        }

    expected = by_hand(range(1, 9))
    for found in on_ranks(count, read):
        assert found["ema"].keys() == found[WEIGHTS].keys() == expected.keys()
        for name, tensor in weights_of(8).items():
            assert torch.equal(found[WEIGHTS][name], tensor)
            torch.testing.assert_close(found["ema"][name].double(), expected[name], rtol=1e-6, atol=1e-6)


@DIVISIONS
def test_the_distance_is_that_of_all_ranks(divide: Divide, made: list[Partition]) -> None:
    made += partitions(divide(weights_of(0), 3))
    train(made, shadows_of(made), range(1, 9))
    raw, ema = weights_of(8), by_hand(range(1, 9))
    apart = sum(float((ema[name] - raw[name].double()).square().sum()) for name in raw)
    size = sum(float(raw[name].double().square().sum()) for name in raw)
    for found in on_ranks(3, lambda rank: made[rank].distance("ema")):
        assert found == pytest.approx((apart, size), rel=1e-5)


@DIVISIONS
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 3), (2, 2)])
def test_a_state_goes_on_with_any_number_of_ranks(
    divide: Divide, before: int, after: int, made: list[Partition], tmp_path: Path
) -> None:
    first = partitions(divide(weights_of(0), before))
    train(first, shadows_of(first), range(1, 6))
    file = tmp_path / "state.safetensors"
    first[0].save(file, "ema")
    made += [*first, *(second := partitions(divide(weights_of(5), after)))]
    shadows = shadows_of(second)
    for partition in second:
        assert partition.load("ema", checkpoint.load(file)) == []
        partition.peers.advance()
    train(second, shadows, range(6, 9))
    wholes = second[0].wholes(averaged_only=True)
    expected = by_hand(range(1, 9))
    for whole, tensor in zip(wholes, second[0].whole_tensors("ema", wholes), strict=True):
        torch.testing.assert_close(tensor.double(), expected[whole.name], rtol=1e-6, atol=1e-6)


def test_a_state_of_a_divided_model_is_one_of_a_whole_model(made: list[Partition], tmp_path: Path) -> None:
    made += partitions(one_flat_tensor(weights_of(0), 3))
    train(made, shadows_of(made), range(1, 4))
    made[0].save(tmp_path / "state.safetensors", "ema")
    whole = Shadow(list(weights_of(3).items()), debiased(0.9), frozen_too=True)
    assert whole.load_state_dict(checkpoint.load(tmp_path / "state.safetensors")) == []
    assert (whole.step, whole.updates) == (3, 3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("a"), "'a' is missing"),
        (lambda state: state.update(a=torch.zeros(7, 5)), r"'a' is of shape \(7, 5\)"),
        (lambda state: state.update(d=torch.zeros(1)), "1 weights unknown, the first is 'd'"),
    ],
)
def test_a_state_of_another_model_changes_nothing(
    spoil: Callable[[dict[str, Tensor]], object], message: str, made: list[Partition], tmp_path: Path
) -> None:
    made += partitions(one_flat_tensor(weights_of(0), 1))
    (shadow,) = shadows_of(made)
    train(made, [shadow], range(1, 3))
    made[0].save(tmp_path / "state.safetensors", "ema")
    state = checkpoint.load(tmp_path / "state.safetensors")
    spoil(state["shadow"])
    before = shadow.average_of("a").clone()
    with pytest.raises(ValueError, match=message):
        made[0].load("ema", state)
    assert torch.equal(shadow.average_of("a"), before)


def test_memory_is_divided_by_the_ranks(made: list[Partition]) -> None:
    named = {f"layer{number}": torch.zeros(64, 64) for number in range(8)}
    numel = sum(tensor.numel() for tensor in named.values())
    made += partitions(one_flat_tensor(named, 4))
    for shadow in shadows_of(made):
        shadow.capture()
        assert sum(average.numel() * average.element_size() for _, _, average in shadow.pairs()) == 4 * numel // 4


def test_a_rank_that_is_behind_is_waited_for_and_one_that_is_ahead_refuses(made: list[Partition]) -> None:
    made += partitions(one_flat_tensor(weights_of(0), 2))
    shadows = shadows_of(made)
    train(made, shadows, range(1, 2))
    made[0].peers.advance()  # rank 0 has made a step of which rank 1 has not noted the end

    def read(rank: int) -> list[Tensor]:
        if rank == 1:
            made[1].peers.advance()
            return []
        return list(made[0].whole_tensors("ema", made[0].wholes(averaged_only=True)))

    assert len(on_ranks(2, read)[0]) == len(weights_of(0))
    made[1].peers.advance()
    with pytest.raises(PeerError, match="rank 1: it is at 3, not at 2"):
        list(made[0].whole_tensors("ema", made[0].wholes(averaged_only=True)))


def test_a_rank_that_has_died_ends_the_reading(made: list[Partition], tmp_path: Path) -> None:
    made += partitions(one_flat_tensor(weights_of(0), 2))
    train(made, shadows_of(made), range(1, 2))
    made[1].peers.close()
    with pytest.raises(PeerError, match="rank 1 cannot be reached"):
        made[0].save(tmp_path / "state.safetensors", "ema")
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_dies_while_it_is_read_leaves_no_file(made: list[Partition], tmp_path: Path) -> None:
    made += partitions(one_flat_tensor(weights_of(0), 2))
    train(made, shadows_of(made), range(1, 2))
    # a rank that accepts, takes the request and ends in the middle of its answer
    with socket.create_server(("127.0.0.1", 0)) as dying:
        made[0].peers._cards[1] = type(made[0].peers._cards[1])(dying.getsockname(), made[0].peers._cards[1].places)

        def work(rank: int) -> None:
            if rank == 1:
                connection, _ = dying.accept()
                connection.recv(1 << 16)
                connection.sendall(b"\0" * 4)
                connection.close()
                return
            with pytest.raises(PeerError, match="rank 1 has died while it was read"):
                made[0].save(tmp_path / "state.safetensors", "ema")

        on_ranks(2, work)
    assert list(tmp_path.iterdir()) == []


def test_whoever_does_not_know_the_token_gets_nothing(made: list[Partition]) -> None:
    made += partitions(one_flat_tensor(weights_of(0), 1))
    with socket.create_connection(made[0].peers.address) as stranger:
        stranger.sendall(bytes(len(TOKEN)) + b"\0" * 64)
        stranger.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


def test_a_rank_waits_for_the_first_one_as_long_as_that_lives(made: list[Partition]) -> None:
    made += partitions(one_flat_tensor(weights_of(0), 2))
    while made[1].peers._released.is_set():  # until the first one's connection has been seen
        pass
    assert not made[1].peers.wait_for_first(0.05)
    made[0].peers.close()
    assert made[1].peers.wait_for_first(30)


def test_a_gap_and_ranks_that_disagree_are_found() -> None:
    place = Place("a", (4,), 0, 2, averaged=True)
    with pytest.raises(ValueError, match="no rank keeps element 2 of 'a'"):
        plan([[place]], 0, ["a"])
    with pytest.raises(ValueError, match="'b' is kept by no rank"):
        plan([[place]], 0, ["b"])
    with pytest.raises(ValueError, match=r"'a' has the shapes \[\(2, 2\), \(4,\)\]"):
        plan([[place], [Place("a", (2, 2), 2, 4, averaged=True)]], 0, ["a"])


def test_what_several_ranks_have_is_read_from_the_own_one() -> None:
    same = [Place("a", (4,), 0, 4, averaged=True)]
    (whole,) = plan([same, same], 1, ["a"])
    assert [(part.rank, part.start, part.end) for part in whole.parts] == [(1, 0, 4)]
