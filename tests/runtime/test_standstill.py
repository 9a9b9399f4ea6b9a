from __future__ import annotations

import contextlib
from collections.abc import Iterator
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from kohya_ext.runtime.standstill import Standstill, fixed_timesteps  # noqa: E402

NORMAL = NormalDist().inv_cdf(0.75)


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda: torch.randint(0, 1000, (1,), device="cpu"), 750),
        (lambda: torch.randint(200, 400, (3,)), 350),
        (lambda: torch.randint(1000, (1,)), 750),
        (lambda: torch.randint(low=100, high=200, size=(1,)), 175),
        (lambda: torch.rand((1,)), 0.75),
        (lambda: torch.rand(size=(1,), device="cpu"), 0.75),
        (lambda: torch.randn((1,)), NORMAL),
        (lambda: torch.randn(1, device="cpu"), NORMAL),
        (lambda: torch.normal(mean=0.5, std=2.0, size=(1,), device="cpu"), 0.5 + 2 * NORMAL),
        (lambda: torch.normal(0.5, 2.0, (1,)), 0.5 + 2 * NORMAL),
    ],
)
def test_draws_of_timesteps(draw: object, expected: float) -> None:
    """The calls of Kohya's families, by their forms."""
    assert callable(draw)
    free = draw()
    with fixed_timesteps(0.75) as draws:
        fixed = draw()
    assert fixed.dtype == free.dtype and fixed.shape == free.shape and len(draws) == 1
    assert torch.allclose(fixed.double(), torch.full(fixed.shape, expected, dtype=torch.float64), atol=1e-6)


def test_noise_and_strengths_stay_random() -> None:
    torch.manual_seed(0)
    expected = [
        torch.randn(1, 4, 8, 8),
        torch.rand(1),
        torch.randn_like(torch.empty(1, 4)),
        torch.rand(1, device="cpu"),
    ]
    torch.manual_seed(0)
    with fixed_timesteps(0.75) as draws:
        found = [
            torch.randn(1, 4, 8, 8),
            torch.rand(1),
            torch.randn_like(torch.empty(1, 4)),
            torch.rand(1, device="cpu"),
        ]
    assert not draws and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_draw_takes_the_same_random_numbers() -> None:
    torch.manual_seed(0)
    torch.randint(0, 1000, (1,))
    expected = torch.rand(2, 2)
    torch.manual_seed(0)
    with fixed_timesteps(0.75):
        torch.randint(0, 1000, (1,))
        assert torch.equal(torch.rand(2, 2), expected)


def test_the_functions_come_back() -> None:
    before = (torch.rand, torch.randn, torch.randint, torch.normal)
    with pytest.raises(KeyError), fixed_timesteps(0.5):
        raise KeyError
    assert (torch.rand, torch.randn, torch.randint, torch.normal) == before


class Accelerator:
    """The parts of accelerate's that matter here."""

    def __init__(self) -> None:
        self.sync_gradients, self.backwards, self.logged = True, 0, []  # type: tuple[bool, int, list[Any]]
        self.trackers: list[Any] = []
        self.gradient_state = SimpleNamespace(sync_gradients=True, _set_sync_gradients=self._set)

    def _set(self, value: bool) -> None:
        self.sync_gradients = self.gradient_state.sync_gradients = value

    @contextlib.contextmanager
    def accumulate(self, *_: Any) -> Iterator[None]:
        yield

    def no_sync(self, _: Any) -> Any:
        return contextlib.nullcontext()

    def backward(self, loss: Any) -> None:
        self.backwards += 1

    def prepare(self, *models: Any) -> Any:
        return models

    def log(self, values: Any, step: int) -> None:
        self.logged.append(values)

    def init_trackers(self) -> None:
        self.trackers = [SimpleNamespace(log=lambda *_, **__: self.logged.append("tracker"))]


class Network(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """A model that swaps blocks, and whose weights a script scales behind the step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.blocks_to_swap, self.returned, self.scaled = 3, 0, 0

    def prepare_block_swap_before_forward(self) -> None:
        self.returned += 1

    def apply_max_norm_regularization(self, *_: Any) -> tuple[int, float, float]:
        self.scaled += 1
        return 1, 1.0, 1.0


def test_a_step_that_measures_goes_no_further_than_its_loss() -> None:
    accelerator, network = Accelerator(), Network()
    passed: list[Any] = []
    standstill = Standstill(accelerator, passed.append)
    accelerator.prepare(network, object())
    accelerator.init_trackers()
    network.layer.eval()  # a part that the script keeps in evaluation mode
    assert passed == [network]

    def step() -> str:
        reached = "start"
        with accelerator.accumulate(network):
            loss = network.layer(torch.ones(1, 2)).sum()
            reached = "loss"
            accelerator.backward(loss)
            reached = "optimizer"
        accelerator.log({}, step=1)
        accelerator.trackers[0].log({})
        network.apply_max_norm_regularization()
        return reached

    counter = SimpleNamespace(value=7)
    with standstill.still(counter):
        standstill.quantile = 0.5
        counter.value = 8
        assert step() == "loss"
        assert standstill.take_loss() == pytest.approx(network.layer(torch.ones(1, 2)).detach().sum().item())
        assert (counter.value, accelerator.sync_gradients, network.training) == (7, False, False)
        with pytest.raises(RuntimeError, match="has not computed a loss"):
            standstill.take_loss()
    assert (accelerator.backwards, accelerator.logged, network.scaled, network.returned) == (0, [], 0, 1)
    assert (accelerator.sync_gradients, network.training, network.layer.training) == (True, True, False)
    assert standstill.steps == 0
    assert step() == "optimizer"
    assert (accelerator.backwards, accelerator.logged, network.scaled, network.returned) == (1, [{}, "tracker"], 1, 1)
    assert standstill.steps == 1


def test_what_a_script_raises_passes_through() -> None:
    accelerator = Accelerator()
    standstill = Standstill(accelerator, lambda _: None)
    with pytest.raises(KeyError), standstill.still(None):
        standstill.quantile = 0.5
        with accelerator.accumulate():
            raise KeyError
    assert not standstill.measuring and accelerator.sync_gradients
