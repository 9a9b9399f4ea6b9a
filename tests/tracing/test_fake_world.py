"""Tensors without contents on two devices that both are a CPU."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.tracing.fake_world import DEVICE, FakeWorld, _replacements  # noqa: E402
from kohya_ext.tracing.ledger import Ledger  # noqa: E402


@pytest.fixture(autouse=True)
def _placed_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, value in _replacements():
        monkeypatch.setattr(owner, name, value)


def test_a_timestep_is_found_in_one_place() -> None:
    """As FLUX's and SD3's scripts look it up by default."""
    with FakeWorld(None):
        schedule = torch.linspace(0, 1, 1000, device=DEVICE)
        sigma = schedule[[(schedule == one).nonzero().item() for one in torch.rand(2, device=DEVICE)]]
        assert (tuple(sigma.shape), str(sigma.device)) == ((2,), DEVICE)


def test_a_sampler_of_one_step_begins_at_the_first() -> None:
    """It reads the noise of this step and of the next."""
    with FakeWorld(None):
        timesteps, sigmas = torch.linspace(999, 0, 1, device=DEVICE), torch.ones(2, device=DEVICE)
        found = (timesteps == timesteps[0]).nonzero()
        first = found[1 if len(found) > 1 else 0].item()
        assert str((sigmas[first] * sigmas[first + 1]).device) == DEVICE


@pytest.mark.parametrize("batch", [1, 2])
def test_the_images_of_a_batch_are_alike(batch: int) -> None:
    """As scripts of 2024 ask of the multipliers of a LoRA; and no number among them is NaN."""
    with FakeWorld(None):
        multipliers = torch.ones(batch).to(DEVICE)
        assert torch.all(multipliers == multipliers[0])
        assert not torch.any(torch.isnan(multipliers))


def test_swapped_blocks_take_the_room_of_one() -> None:
    """As `--blocks_to_swap` does it: in a thread, by exchanging what the weights of two blocks hold."""
    ledger = Ledger(DEVICE)
    with FakeWorld(ledger):
        first, second = torch.nn.Linear(256, 256, bias=False), torch.nn.Linear(256, 256, bias=False)
        first.to(DEVICE)
        size = ledger.now

        def swap() -> None:
            on_the_card, on_the_host = first.weight.data, second.weight.data
            first.weight.data = on_the_card.data.to("cpu", non_blocking=True)
            on_the_card.copy_(on_the_host, non_blocking=True)
            second.weight.data = on_the_card

        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
            swapping = pool.submit(swap)
            assert str(second(torch.zeros(1, 256, device=DEVICE)).device) == DEVICE
            swapping.result()
        assert [str(one.weight.device) for one in (first, second)] == ["cpu", DEVICE]
        assert size == 256 * 256 * 4
        assert ledger.peaks["loading"].size - size < size  # no second block was there at any time


def test_what_fails_in_a_thread_fails_where_its_result_is_asked_for() -> None:
    def fail() -> None:
        raise ValueError("no")

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        failing = pool.submit(fail)
    with pytest.raises(ValueError, match="no"):
        failing.result()


@pytest.mark.parametrize("numbers", [[1.0], [1.0, 2.0], 1.0], ids=str)
@pytest.mark.parametrize("make", ["tensor", "FloatTensor"])
def test_what_is_moved_is_on_the_training_device(make: str, numbers: Any) -> None:
    """A batch of one image as well: torch remembers a tensor's only number, and where that is."""
    with FakeWorld(None):
        host = getattr(torch, make)(numbers if make == "tensor" or isinstance(numbers, list) else [numbers])
        moved = host.to(DEVICE, non_blocking=True)
        assert (str(host.device), str(moved.device)) == ("cpu", DEVICE)
        assert str((torch.zeros(1, device=DEVICE) * moved).device) == DEVICE
