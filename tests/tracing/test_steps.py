"""When two optimizer steps of a script are over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from kohya_ext.tracing.facts import Facts
from kohya_ext.tracing.fake_world import DEVICE
from kohya_ext.tracing.ledger import Ledger
from kohya_ext.tracing.milestones import Reached
from kohya_ext.tracing.steps import Steps


@pytest.fixture
def steps() -> Steps:
    facts = Facts()
    facts.args = SimpleNamespace(save_every_n_steps=None)
    return Steps(Ledger(DEVICE), facts)


def batches_until_over(steps: Steps, syncs: list[bool], *, scheduled: bool) -> int:
    """How many batches a script takes; syncs: whether each ends an optimizer step."""
    taken = 0
    with pytest.raises(Reached):
        for sync in syncs:
            taken += 1
            if scheduled:
                steps.finish(sync)
            steps.end_batch(sync)
    return taken


def test_a_script_with_a_schedule_takes_two_batches(steps: Steps) -> None:
    assert batches_until_over(steps, [True] * 9, scheduled=True) == 2
    assert (steps.done, steps.facts.args.save_every_n_steps) == (2, 1)


def test_one_without_takes_a_third_in_which_it_saves(steps: Steps) -> None:
    """Schedule-free optimizers have a dummy for a schedule, which accelerate does not see."""
    assert batches_until_over(steps, [True] * 9, scheduled=False) == 3
    assert steps.facts.args.save_every_n_steps == 1


@pytest.mark.parametrize(("scheduled", "batches"), [(True, 4), (False, 5)])
def test_accumulated_batches_are_no_steps(steps: Steps, scheduled: bool, batches: int) -> None:
    assert batches_until_over(steps, [False, True] * 9, scheduled=scheduled) == batches
