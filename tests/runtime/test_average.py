"""When a step is averaged, and what is in the weights meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")

import torch

from kohya_ext.runtime import averaging, optimizers, tracks
from kohya_ext.runtime.average import Average
from tests.runtime.conftest import Run, close, same

Begin = Callable[..., Run]


def average() -> Average:
    current = averaging.current()
    assert current is not None
    return current


def averaged(run: Run) -> dict[str, torch.Tensor]:
    with average().in_place():
        return run.weights()


def test_every_real_step_counts_once(begin: Begin) -> None:
    run = begin()
    run.step(5)
    assert close(averaged(run), run.expected())
    assert close(averaged(run), run.expected())


def test_looking_at_the_average_between_steps_changes_nothing(begin: Begin) -> None:
    run = begin()
    for _ in range(4):
        run.step()
        averaged(run)
    assert close(averaged(run), run.expected())


def test_weights_that_the_trainer_changes_after_the_step_are_the_ones_averaged(begin: Begin) -> None:
    """`--scale_weight_norms` and textual inversion write weights after optimizer.step()."""
    run = begin()
    for _ in range(3):
        run.step()
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.mul_(0.5)
        run.history[-1] = run.weights()
    assert close(averaged(run), run.expected())


def test_weights_that_are_frozen_and_thawed_are_all_averaged(begin: Begin) -> None:
    """DyLoRA trains another rank at every step and freezes the others."""
    run = begin()
    for step in range(5):
        for number, parameter in enumerate(run.model.parameters()):
            parameter.requires_grad_(number == step % 2)
        run.step()
    assert close(averaged(run), run.expected())


def test_a_step_that_the_scaler_skips_is_no_step(begin: Begin) -> None:
    run = begin()
    run.step(2)
    # what GradScaler does on overflow: optimizer.step() is not called
    run.model(torch.randn(4, 3)).sum().backward()
    run.optimizer.zero_grad()
    run.step()
    assert len(run.history) == 3
    assert close(averaged(run), run.expected())


def test_a_closure_is_one_step(begin: Begin) -> None:
    run = begin()

    def closure() -> torch.Tensor:
        run.optimizer.zero_grad()
        loss = run.model(torch.ones(4, 3)).pow(2).mean()
        loss.backward()
        return loss

    for _ in range(3):
        run.optimizer.step(closure)
        run.history.append(run.weights())
    assert close(averaged(run), run.expected())


def test_raw_weights_come_back_bit_for_bit_also_after_an_exception(begin: Begin) -> None:
    run = begin()
    run.step(3)
    before = run.weights()
    with pytest.raises(RuntimeError, match="disk full"), average().in_place():
        assert not same(run.weights(), before)
        raise RuntimeError("disk full")
    assert same(run.weights(), before)


def test_raw_weights_within_a_save(begin: Begin) -> None:
    """`--ema_save only` on upstream's saver, which saves the resume state in the middle of it."""
    run = begin()
    run.step(3)
    before = run.weights()
    with average().in_place():
        ema = run.weights()
        with averaging.raw_weights():
            assert same(run.weights(), before)
        assert same(run.weights(), ema)
    assert same(run.weights(), before)


def test_no_average_before_the_first_step_or_a_late_start(begin: Begin) -> None:
    run = begin(ema_start_step=2)
    assert not average().ready()
    run.step(2)
    assert not average().ready()
    run.step()
    assert average().ready()
    run.history = run.history[2:]
    assert close(averaged(run), run.expected())


def test_several_optimizers_are_one_average(begin: Begin) -> None:
    """`--fused_optimizer_groups` makes an optimizer of each group of weights."""
    run = begin()
    other = torch.nn.Linear(3, 2)
    second = torch.optim.SGD(other.parameters(), lr=0.5)
    averaging.follow(second)
    run.step(2)
    other(torch.randn(4, 3)).sum().backward()
    second.step()
    stepped = other.weight.detach().clone()
    with average().in_place():
        assert torch.equal(other.weight, stepped)  # one step: the EMA is that step
        assert close(run.weights(), run.expected())


def test_an_optimizer_that_averages_by_itself_is_refused(begin: Begin) -> None:
    class ScheduleFree(torch.optim.SGD):
        def train(self) -> None: ...
        def eval(self) -> None: ...

    begin()
    with pytest.raises(SystemExit):
        averaging.follow(ScheduleFree([torch.nn.Parameter(torch.ones(2))], lr=1.0))


@pytest.mark.skipif(not hasattr(torch.Tensor, "register_post_accumulate_grad_hook"), reason="torch 2.1 has it first")
def test_fused_backward_averages_each_parameter_after_its_step(begin: Begin) -> None:
    run = begin()

    class Accelerated:
        optimizer = run.optimizer
        step_param: Callable[[torch.Tensor, dict[str, object]], None]

    def patch(optimizer: Accelerated) -> None:
        def step_param(parameter: torch.Tensor, group: dict[str, object]) -> None:
            parameter.data.add_(parameter.grad, alpha=-0.5)

        optimizer.step_param = step_param

    accelerated = Accelerated()
    optimizers.patch_fused_backward(patch, accelerated)
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:

            def hook(tensor: torch.Tensor, group: dict[str, object] = group) -> None:
                accelerated.step_param(tensor, group)
                tensor.grad = None

            parameter.register_post_accumulate_grad_hook(hook)
    for _ in range(4):
        run.model(torch.randn(4, 3)).pow(2).mean().backward()
        run.history.append(run.weights())
    assert close(averaged(run), run.expected())


def test_metadata_says_what_it_is(begin: Begin) -> None:
    run = begin(ema_update_every=2)
    run.step(4)
    metadata = average().metadata()
    assert metadata["kohya_ext_ema_decay"] == "0.9"
    assert "kohya_ext_ema_sigma_rel" not in metadata
    assert average().ready()
    assert average().metadata()["kohya_ext_ema_updates"] == "2"


def test_a_start_behind_the_end_is_refused(begin: Begin) -> None:
    """At once where the steps are given; where epochs decide, at the first step, when their number is known."""
    with pytest.raises(SystemExit):
        begin(ema_start_step=10)
    run = begin(ema_start_step=10, max_train_epochs=1)
    with pytest.raises(SystemExit):
        run.step()


def test_an_average_that_stands_still_ends_the_run(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracks, "UPDATES_TO_MOVE", 2)
    run = begin()
    run.step(2)
    shadow = average().tracks[0].made()
    monkeypatch.setattr(shadow._blender, "blend", lambda *job: None)  # the fault: nothing reaches the shadow
    with pytest.raises(SystemExit):
        run.step(6)


def test_weights_that_stand_still_are_no_fault(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate of 0 moves neither."""
    monkeypatch.setattr(tracks, "UPDATES_TO_MOVE", 2)
    run = begin()
    run.optimizer.param_groups[0]["lr"] = 0.0
    run.step(8)
