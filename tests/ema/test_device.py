"""Where `auto` keeps an EMA: a card that is full only once the optimizer has its state must not be filled before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from kohya_ext.ema import Shadow, debiased
from kohya_ext.ema import device as places
from tests.ema.stand_in_device import DEVICE, OnDevice, Placing

WEIGHTS = 1000
SHADOW = 4 * WEIGHTS  # bytes as float32
STATE = 8 * WEIGHTS  # of AdamW
TOTAL = 100_000  # bytes of the card


class Card:
    """A card of TOTAL bytes, of which `free` are free."""

    def __init__(self) -> None:
        self.free = TOTAL

    def memory(self, device: torch.device) -> tuple[int, int] | None:
        return (self.free, TOTAL) if device == DEVICE else None


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    made = Card()
    monkeypatch.setattr(places, "_memory", made.memory)
    with Placing():
        yield made


def weights() -> nn.Parameter:
    return nn.Parameter(OnDevice(torch.linspace(-1, 1, WEIGHTS)))


def where(shadow: Shadow) -> str:
    return next(shadow.pairs())[2].device.type


def values(shadow: Shadow) -> torch.Tensor:
    return next(shadow.pairs())[2].to("cpu")


def step(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.mul_(0.9)


@pytest.mark.parametrize(
    ("before", "after", "at_first", "at_last"),
    [
        # (free before the shadow, free after the first step) as shares of the card
        (0.90, 0.90, "meta", "meta"),  # whatever the optimizer takes, there is room
        (0.23, 0.23, "cpu", "cpu"),  # none, even without the optimizer's state
        (0.35, 0.27, "cpu", "meta"),  # there turns out to be some
        (0.35, 0.23, "cpu", "cpu"),  # there turns out to be none
    ],
)
def test_auto_waits_for_the_state_of_the_optimizer(
    card: Card, before: float, after: float, at_first: str, at_last: str
) -> None:
    parameter = weights()
    shadow = Shadow([parameter], debiased(0.9), device="auto")
    always_there = Shadow([parameter], debiased(0.9), device=None)
    card.free = int(before * TOTAL)
    shadow.capture()
    always_there.capture()
    assert where(shadow) == at_first
    card.free = int(after * TOTAL)
    [(_, _, first)] = shadow.pairs()
    for _ in range(3):
        step(parameter)
        shadow.update()
        always_there.update()
        assert where(shadow) == at_last
        assert shadow.placement is not None and shadow.placement.final
    [(_, _, last)] = shadow.pairs()
    assert (last is first) == (at_first == at_last)  # what stays where it is is not copied
    assert torch.equal(values(shadow), values(always_there))


def test_in_a_fused_backward_pass_the_step_ends_first(card: Card) -> None:
    first, second = weights(), weights()
    shadow = Shadow([first, second], debiased(0.9), device="auto")
    card.free = int(0.5 * TOTAL) - STATE
    shadow.capture()
    for parameter in (first, second):
        step(parameter)
        shadow.update_param(parameter)
        assert where(shadow) == "cpu"
    step(first)
    shadow.update_param(first)  # comes round again: that step is over
    assert where(shadow) == "meta"
    assert torch.equal(values(shadow), _by_hand(0.9))


def _by_hand(decay: float) -> torch.Tensor:
    parameter = nn.Parameter(torch.linspace(-1, 1, WEIGHTS))
    shadow = Shadow([parameter], debiased(decay))
    shadow.capture()
    for _ in range(2):
        step(parameter)
        shadow.update()
    return values(shadow)


def test_a_resumed_run_has_the_state_already(card: Card) -> None:
    parameter = weights()
    shadow = Shadow([parameter], debiased(0.9), device="auto")
    shadow.capture()
    step(parameter)
    shadow.update()
    resumed = Shadow([parameter], debiased(0.9), device="auto")
    resumed.load_state_dict(shadow.state_dict())
    card.free = SHADOW + TOTAL // 5
    resumed.capture()
    assert where(resumed) == "meta"
    assert resumed.placement is not None and resumed.placement.final


def test_an_interval_is_no_reason_to_wait_longer(card: Card) -> None:
    parameter = weights()
    shadow = Shadow([parameter], debiased(0.9), device="auto", update_every=10, start_step=5)
    card.free = TOTAL // 3
    shadow.capture()
    assert where(shadow) == "cpu"
    step(parameter)
    shadow.update()
    assert where(shadow) == "meta"
