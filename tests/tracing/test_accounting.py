"""What optimizers and the EMA take, held to bytes that follow from shapes alone."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.ema import Shadow  # noqa: E402
from kohya_ext.ema.schedules import Constant  # noqa: E402
from kohya_ext.optim import AdaCoor  # noqa: E402
from kohya_ext.tracing.as_cuda import optimizers_as_cuda  # noqa: E402
from kohya_ext.tracing.fake_world import DEVICE, FakeWorld, _replacements  # noqa: E402
from kohya_ext.tracing.kernels import OPTIMIZERS, _Optimizer  # noqa: E402
from kohya_ext.tracing.ledger import ACTIVATIONS, EMA, GRADIENTS, GRAIN, OPTIMIZER, WEIGHTS, Ledger  # noqa: E402

SHAPES = ((300, 257), (1000,), (64, 33, 3, 3), (7,))
BLOCK = 256


@pytest.fixture(autouse=True)
def _placed_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, value in _replacements():
        monkeypatch.setattr(owner, name, value)


def rounded(*sizes: float) -> int:
    """Bytes of a tensor of each of these sizes, as a GPU's allocator rounds them up."""
    return sum(math.ceil(size / GRAIN) * GRAIN for size in sizes)


def each(size: Callable[[int], float]) -> int:
    return sum(rounded(size(math.prod(shape))) for shape in SHAPES)


def after_steps(make: Callable[[Any], Any], dtype: Any, shadow: Callable[[Any], Any] | None = None) -> dict[str, int]:
    """What is alive after two steps."""
    ledger = Ledger(DEVICE)
    ledger.enter("steps", ACTIVATIONS)
    with FakeWorld(ledger):
        weights = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device=DEVICE)) for shape in SHAPES]
        optimizer = make(weights)
        average = None if shadow is None else shadow(weights)
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
                ledger.file(weight.grad, GRADIENTS)
            if average is not None:
                average.capture()
            optimizer.step()
            if average is not None:
                average.update()
        for state in optimizer.state.values():
            for value in state.values():
                ledger.file(value, OPTIMIZER)
        if average is not None:
            for _, _, one in average.pairs():
                ledger.file(one, EMA)
        for weight in weights:
            ledger.file(weight, WEIGHTS)
        assert ledger.by_part[WEIGHTS] == ledger.by_part[GRADIENTS] == each(lambda n: n * dtype.itemsize)
        return dict(ledger.by_part)


ADACOOR: list[tuple[dict[str, Any], Any, Callable[[int], list[float]]]] = [
    ({}, torch.float32, lambda n: [2 * n]),
    ({}, torch.bfloat16, lambda n: [2 * n]),
    ({"state_bits": 32}, torch.float32, lambda n: [4 * n]),
    ({"state_bits": 8}, torch.float32, lambda n: [n, 4 * math.ceil(n / BLOCK)]),
    ({"state_bits": 8}, torch.bfloat16, lambda n: [n, 4 * math.ceil(n / BLOCK)]),
    ({"momentum": 0.9}, torch.bfloat16, lambda n: [2 * n, 2 * n]),
    ({"momentum": 0.9, "state_bits": 32}, torch.float32, lambda n: [4 * n, 4 * n]),
]


@pytest.mark.parametrize(("options", "dtype", "sizes"), ADACOOR, ids=lambda one: None if callable(one) else str(one))
def test_adacoor(options: dict[str, Any], dtype: Any, sizes: Callable[[int], list[float]]) -> None:
    parts = after_steps(lambda weights: AdaCoor(weights, **options), dtype)
    assert parts[OPTIMIZER] == sum(rounded(*sizes(math.prod(shape))) for shape in SHAPES)


class _KeepsItsStart(torch.optim.Optimizer):  # type: ignore[name-defined]
    """As Prodigy does: a copy of each weight that is not all zeros, a number for one that is."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights, {})

    def step(self, closure: Any = None) -> None:
        for weight in self.param_groups[0]["params"]:
            start = weight.detach().clone() if weight.any() else torch.zeros((), device=weight.device)
            self.state[weight].setdefault("start", start)


@pytest.mark.parametrize("zeros", [False, True])
def test_an_optimizer_that_looks_whether_a_weight_is_zero(zeros: bool) -> None:
    """There is nothing in a weight here; what is known is whether it was filled with zeros, as a LoRA's second half."""

    def make(weights: Any) -> Any:
        for weight in weights:
            (torch.nn.init.zeros_ if zeros else torch.nn.init.normal_)(weight)
        return _KeepsItsStart(weights)

    assert after_steps(make, torch.float32)[OPTIMIZER] == each(lambda n: 4 if zeros else 4 * n)


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit", "PagedAdamW8bit", "AdamW"])
def test_bitsandbytes(name: str) -> None:
    """8 bits and a scale for each 256 weights; tensors below 4,096 weights have states of 32 bits."""
    states, in_8_bits = OPTIMIZERS[name]
    kind = type(name, (_Optimizer,), {"states": states, "in_8_bits": in_8_bits})
    parts = after_steps(kind, torch.bfloat16)
    small = [n for n in map(math.prod, SHAPES) if n < 4096 or not in_8_bits]
    large = [n for n in map(math.prod, SHAPES) if n not in small]
    eight = sum(rounded(n, 4 * math.ceil(n / BLOCK)) for n in large)
    assert parts[OPTIMIZER] == states * (rounded(*(4 * n for n in small)) + eight)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 4),
        ({"dtype": torch.bfloat16, "stochastic": True}, 2),
        ({"device": "auto"}, 4),
        ({"device": "cpu"}, 0),
        ({"device": "cpu", "dtype": torch.bfloat16, "stochastic": True}, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ema(options: dict[str, Any], size: int, dtype: Any) -> None:
    """As large as the weights next to them; nothing on the device where it is in the host's memory."""
    parts = after_steps(AdaCoor, dtype, lambda weights: Shadow(weights, Constant(0.9), **options))
    assert parts.get(EMA, 0) == each(lambda n: n * size)


@pytest.mark.parametrize(
    ("name", "states", "lists"), [("AdamW", 2, 1), ("Adam", 2, 1), ("RMSprop", 1, 1), ("SGD", 0, 0)]
)
def test_the_step_of_torchs_optimizers_on_a_gpu(name: str, states: int, lists: int) -> None:
    """They step lists of tensors there: for a moment a list of all of a group's roots is alive."""

    def most(group: int) -> int:
        ledger = Ledger(DEVICE)
        with FakeWorld(ledger), optimizers_as_cuda():
            weights = [torch.nn.Parameter(torch.zeros(4096, device=DEVICE)) for _ in range(8)]
            groups = [{"params": weights[i : i + group]} for i in range(0, len(weights), group)]
            optimizer = getattr(torch.optim, name)(groups, lr=0.1)
            for _ in range(2):
                ledger.enter("backward", GRADIENTS)
                for weight in weights:
                    weight.grad = torch.zeros_like(weight)
                ledger.enter("optimizer", OPTIMIZER)
                optimizer.step()
        return ledger.peaks["optimizer"].size

    for group in (8, 2):
        assert most(group) == 4 * 4096 * (8 * (2 + states) + lists * group)


def test_torchs_optimizers_are_as_before_afterwards() -> None:
    modules = [importlib.import_module(f"torch.optim.{name}") for name in ("optimizer", "adam", "sgd")]
    before = [module._default_to_fused_or_foreach for module in modules]
    with optimizers_as_cuda():
        assert not set(before) & {module._default_to_fused_or_foreach for module in modules}
    assert [module._default_to_fused_or_foreach for module in modules] == before
