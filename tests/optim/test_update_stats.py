from __future__ import annotations

import pytest
import torch

from kohya_ext.optim import AdaCoor
from kohya_ext.optim.update_stats import Movement, MovementMeter


def gradients(*parameters: torch.Tensor, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype))


def measured(optimizer: torch.optim.Optimizer, *parameters: torch.Tensor, **settings: int) -> list[Movement]:
    meter = MovementMeter(optimizer, every=1, **settings)
    gradients(*parameters)
    optimizer.step()
    return meter.take()


def test_plain_sgd_has_the_rate_it_was_given() -> None:
    first, second = weights(40, 30), weights(7)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.25}, {"params": [second], "lr": 0.5}], lr=1.0)
    a, b = measured(optimizer, first, second)
    assert (a.group, b.group) == (0, 1)
    assert a.effective_lr == pytest.approx(0.25, rel=1e-5) and b.effective_lr == pytest.approx(0.5, rel=1e-5)
    assert a.moved == b.moved == 1.0


def test_the_first_step_of_adamw_and_adacoor() -> None:
    """Both first move every weight by a known amount, whatever its gradient: lr, and lr * sqrt(eps)."""
    for optimizer, step in ((torch.optim.AdamW, 1e-3), (AdaCoor, 1e-4)):
        one = weights(2000)
        settings = {"lr": 1e-3, "weight_decay": 0.0} if optimizer is torch.optim.AdamW else {"state_bits": 32}
        (found,) = measured(optimizer([one], **settings), one)
        assert found.update == pytest.approx(step, rel=2e-3)
        assert found.gradient == pytest.approx(float(one.grad.square().mean().sqrt()), rel=1e-5)


def test_what_bfloat16_rounds_away_has_not_moved() -> None:
    one = weights(4000, dtype=torch.bfloat16)
    with torch.no_grad():
        one.abs_().add_(1.0)
    (found,) = measured(torch.optim.SGD([one], lr=1e-6), one)
    assert found.moved == 0.0 and found.update == 0.0 and found.effective_lr == 0.0


def test_a_sample_of_a_large_group_is_a_fair_one() -> None:
    one, other = weights(300, 401), weights(1000)
    all_of_it = measured(torch.optim.SGD([one, other], lr=0.1), one, other)[0]
    part = measured(torch.optim.SGD([one, other], lr=0.1), one, other, sample=20_000)[0]
    assert part.gradient == pytest.approx(all_of_it.gradient, rel=0.03) and part.gradient != all_of_it.gradient
    assert part.effective_lr == pytest.approx(0.1, rel=1e-4)


def test_unusable_gradients_are_left_out() -> None:
    one = weights(100)
    optimizer = AdaCoor([one], state_bits=32)
    meter = MovementMeter(optimizer, every=1)
    gradients(one)
    one.grad[:50] = float("nan")
    optimizer.step()
    (found,) = meter.take()
    assert found.moved == 1.0 and found.update == pytest.approx(1e-4, rel=1e-2)
    one.grad.fill_(float("inf"))
    optimizer.step()
    assert meter.take() == []
    assert (optimizer.skipped, optimizer.skipped_steps) == (150, 1)


def test_every_nth_step_only() -> None:
    one = weights(10)
    optimizer = torch.optim.SGD([one], lr=0.1)
    meter = MovementMeter(optimizer, every=3)
    lengths = []
    for step in range(7):
        gradients(one, seed=step)
        optimizer.step()
        lengths.append(len(meter.take()))
    assert lengths == [0, 0, 1, 0, 0, 1, 0]


def test_parameters_stepped_one_by_one() -> None:
    one, other = weights(30), weights(20)
    optimizer = AdaCoor([{"params": [one]}, {"params": [other]}], state_bits=32)
    meter = MovementMeter(optimizer, every=2)
    taken = []
    for step in range(4):
        gradients(one, other, seed=step)
        for parameter in (other, one):
            meter.before(parameter)
            optimizer.step_param(parameter)
            parameter.grad = None
            meter.after(parameter)
        taken.append([found.group for found in meter.take()])
    assert taken == [[], [0, 1], [], [0, 1]]
    assert meter.knows(one) and not meter.knows(weights(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_changes_nothing(dtype: torch.dtype) -> None:
    def run(every: int) -> tuple[torch.Tensor, int]:
        one = weights(500, dtype=dtype)
        optimizer = AdaCoor([one], stochastic_state=True)
        if every:
            meter = MovementMeter(optimizer, every)
        for step in range(6):
            gradients(one, seed=step)
            optimizer.step()
            if every:
                meter.take()
        return one.detach(), int(torch.randint(1 << 30, (1,)))

    torch.manual_seed(3)
    plain = run(0)
    torch.manual_seed(3)
    observed = run(1)
    assert torch.equal(plain[0], observed[0]) and plain[1] == observed[1]


@pytest.mark.skipif(torch.__version__ < (2, 4), reason="torch fuses AdamW on CPUs since 2.4")
def test_under_a_loss_scale_the_gradient_is_the_unscaled_one() -> None:
    one = weights(200)
    optimizer = torch.optim.AdamW([one], lr=1e-3, fused=True)
    meter = MovementMeter(optimizer, every=1)
    gradients(one)
    true = float(one.grad.square().mean().sqrt())
    one.grad *= 1024
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    optimizer.step()
    assert meter.take()[0].gradient == pytest.approx(true, rel=1e-4)


def test_a_channels_last_weight() -> None:
    one = torch.nn.Parameter(torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last))
    assert measured(torch.optim.SGD([one], lr=0.5), one)[0].effective_lr == pytest.approx(0.5, rel=1e-5)


def test_a_group_added_later() -> None:
    one, other = weights(10), weights(10)
    optimizer = torch.optim.SGD([one], lr=0.1)
    meter = MovementMeter(optimizer, every=1)
    gradients(one)
    optimizer.step()
    meter.take()
    optimizer.add_param_group({"params": [other], "lr": 0.2})
    gradients(one, other)
    optimizer.step()
    assert [round(found.effective_lr, 4) for found in meter.take()] == [0.1, 0.2]
