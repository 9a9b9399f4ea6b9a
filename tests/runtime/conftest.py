"""A run with EMA, without Kohya: the wrappers get functions of ours with the signatures of upstream's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.runtime import averaging, options
from kohya_ext.runtime.run import run

DECAY = 0.9


@dataclass
class Run:
    """A tiny model in training, its optimizer, and its weights after every real step."""

    args: argparse.Namespace
    model: Any
    optimizer: Any
    history: list[dict[str, Any]] = field(default_factory=list)

    def step(self, times: int = 1) -> None:
        import torch

        for _ in range(times):
            self.model(torch.randn(4, 3)).pow(2).mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.history.append(self.weights())

    def weights(self) -> dict[str, Any]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def expected(self) -> dict[str, Any]:
        """The debiased average of the history, by its definition, in float64."""
        powers = [DECAY ** (len(self.history) - n) for n in range(1, len(self.history) + 1)]
        return {
            name: sum(w * step[name].double() for w, step in zip(powers, self.history, strict=True)) / sum(powers)
            for name in self.history[0]
        }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    import torch

    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def close(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(float((a[name].double() - b[name].double()).abs().max()) < 1e-6 for name in b)


@pytest.fixture(autouse=True)
def no_reminders(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test makes the runtime remember for the end of the run is not said at the end of the tests."""
    monkeypatch.setattr(run, "reminders", [])


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Starts a run with `--enable_ema --ema_decay 0.9` and further settings."""
    torch = pytest.importorskip("torch")

    def start(**settings: Any) -> Run:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        args = argparse.Namespace(
            enable_ema=True, ema_decay=DECAY, max_train_steps=10, output_dir=str(tmp_path), output_name="dog",
            save_state=False, **settings,
        )  # fmt: skip
        read = options.read(args)
        assert read is not None
        averaging.begin(args, read)
        averaging.meet(model)
        run = Run(args, model, torch.optim.SGD(model.parameters(), lr=0.5))
        averaging.follow(run.optimizer)
        return run

    monkeypatch.setattr(run, "averages", [])
    yield start
    run.restore()
