"""What is alive is counted, on real tensors and on those without contents alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from kohya_ext.tracing.as_cuda import autocast_as_cuda  # noqa: E402
from kohya_ext.tracing.fake_world import FakeWorld, _replacements  # noqa: E402
from kohya_ext.tracing.ledger import ACTIVATIONS, COPIES, WEIGHTS, Ledger  # noqa: E402


class Counting(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    """Has a ledger hear of every operation, of real tensors too."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.ledger.note(func, args, made)
        return made


def work(device: str) -> None:
    """A layer, its gradients, and an optimizer's step."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64, device=device), torch.nn.GELU())
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)
    for _ in range(2):
        layer(torch.zeros(100, 64, device=device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_same_as_on_real_tensors() -> None:
    real, fake = Ledger("cpu"), Ledger("cpu")
    with Counting(real):
        work("cpu")
    with FakeWorld(fake):
        work("cpu")
    assert real.peaks["loading"].size == fake.peaks["loading"].size > 64 * 64 * 4 * 4
    assert fake.now < 64 * 64 * 4


def test_the_host_is_not_the_device() -> None:
    ledger = Ledger("cpu:0")
    with FakeWorld(ledger):
        kept = torch.zeros(1000)
        assert ledger.now == 0
        moved = kept.to("cpu:0")
        assert ledger.now == 4096
        with pytest.raises(RuntimeError):
            kept + moved
        del moved
        assert ledger.now == 0


@pytest.mark.parametrize("make", ["tensor", "as_tensor"])
def test_a_tensor_of_numbers_is_where_it_should_be(make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("cpu:0")
    for owner, name, value in _replacements():
        monkeypatch.setattr(owner, name, value)
    with FakeWorld(ledger):
        made = getattr(torch, make)([1.0, 2.0], device="cpu:0")
        assert (made + torch.zeros(2, device="cpu:0")).fake_device == torch.device("cpu:0")
        assert ledger.now == 512
        assert getattr(torch, make)([1, 2]).device == torch.device("cpu")


def test_a_copy_of_a_tensor_without_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an optimizer's state is copied when it is loaded."""
    for owner, name, value in _replacements():
        monkeypatch.setattr(owner, name, value)
    with FakeWorld(None):
        here = torch.zeros(2, device="cpu:0", requires_grad=True)
        first, second = copy.deepcopy([here, here])
    assert first is second
    assert (first.fake_device, first.requires_grad) == (torch.device("cpu:0"), True)


def test_parts() -> None:
    ledger = Ledger("cpu")
    with FakeWorld(ledger):
        layer = torch.nn.Linear(64, 64, bias=False)
        ledger.enter("forward", ACTIVATIONS)
        ledger.file(layer.weight, WEIGHTS)
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(torch.zeros(8, 64))
            parts = dict(ledger.by_part)
        del result
    assert (parts[WEIGHTS], parts[COPIES]) == (64 * 64 * 4, 64 * 64 * 2)
    assert parts[ACTIVATIONS] >= 8 * 64 * 2


def test_autocast_as_on_a_gpu() -> None:
    norm, images = torch.nn.GroupNorm(2, 8), torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        before = norm(images).dtype
        with autocast_as_cuda():
            assert norm(images).dtype == torch.float32
            assert images.softmax(-1).dtype == torch.float32
            assert torch.nn.Linear(4, 4)(images).dtype == torch.bfloat16
        assert norm(images).dtype == before
