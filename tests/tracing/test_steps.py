"""When two optimizer steps of a script are over."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from kohya_ext.tracing.facts import Facts  # noqa: E402
from kohya_ext.tracing.fake_world import DEVICE  # noqa: E402
from kohya_ext.tracing.ledger import Ledger  # noqa: E402
from kohya_ext.tracing.milestones import Reached  # noqa: E402
from kohya_ext.tracing.staging import _until_over  # noqa: E402
from kohya_ext.tracing.steps import Steps, follow  # noqa: E402

MANY = 20  # batches


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    for owner, name in (
        (accelerate.Accelerator, "__init__"), (accelerate.Accelerator, "accumulate"),
        (accelerate.Accelerator, "backward"), (accelerate.optimizer.AcceleratedOptimizer, "step"),
        (accelerate.scheduler.AcceleratedScheduler, "step"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    _forget()
    facts = Facts()
    facts.args = SimpleNamespace(save_every_n_steps=None)
    yield follow(Ledger(DEVICE), facts)
    _forget()


def _forget() -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def train(steps: Steps, *, scheduled: bool, accumulated: int = 1) -> tuple[int, list[int]]:
    """As a script does it, with a loader that takes a batch ahead: its batches, and the steps at which it saved."""
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=accumulated)
    weight = torch.nn.Parameter(torch.ones(1))
    plain = torch.optim.SGD([weight], lr=0.1)
    optimizer = accelerator.prepare(plain)
    dummy = SimpleNamespace(step=lambda: None)
    schedule = accelerator.prepare(torch.optim.lr_scheduler.ConstantLR(plain)) if scheduled else dummy
    taken, done, saved = 0, 0, []
    batches = _until_over(iter(range(MANY)), steps)
    next(batches)
    with pytest.raises(Reached):
        while True:
            next(batches)
            taken += 1
            with accelerator.accumulate(weight):
                accelerator.backward(weight.sum())
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                done += 1
                if steps.facts.args.save_every_n_steps == 1:
                    saved.append(done)
    return taken, saved


@pytest.mark.parametrize("scheduled", [True, False])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_script_makes_two_steps_and_saves_after_the_second(steps: Steps, scheduled: bool, accumulated: int) -> None:
    """Schedule-free optimizers have a dummy for a schedule, which accelerate does not see."""
    assert train(steps, scheduled=scheduled, accumulated=accumulated) == (2 * accumulated, [2])
