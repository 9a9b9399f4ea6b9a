"""What is saved and sampled between steps is a phase of its own, where there is something to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.tracing.between_steps import SAMPLING, SAVING, ask_for_it, phases  # noqa: E402
from kohya_ext.tracing.fake_world import DEVICE, FakeWorld  # noqa: E402
from kohya_ext.tracing.ledger import Ledger  # noqa: E402


def test_phases() -> None:
    ledger = Ledger(DEVICE)
    named = phases(ledger)
    save = named["save_sd_model_on_train_end_common"](lambda size: torch.zeros(size, device=DEVICE).sum() and "saved")
    sample = named["sample_images_common"](lambda: None)
    with FakeWorld(ledger):
        ledger.enter("forward", "activations")
        kept = torch.zeros(256, device=DEVICE)
        assert sample() is None
        assert SAMPLING not in ledger.peaks
        save(1024)
        assert ledger.peaks[SAVING].size == 1024 + 4096 + 512
        assert ledger.phase == "forward"
        del kept


@pytest.mark.parametrize(
    ("given", "samples"),
    [
        ({"sample_every_n_steps": 500, "sample_prompts": "p.txt"}, (1, None)),
        ({"sample_every_n_epochs": 2, "sample_prompts": "p.txt", "sample_every_n_steps": None}, (1, None)),
        ({"sample_every_n_epochs": 2, "sample_every_n_steps": None}, (None, 2)),
    ],
)
def test_asked_for(given: dict[str, Any], samples: tuple[int | None, int | None]) -> None:
    args = SimpleNamespace(**{"save_every_n_steps": None, "sample_every_n_epochs": None, **given})
    ask_for_it(args)
    assert args.save_every_n_steps == 1
    assert (args.sample_every_n_steps, args.sample_every_n_epochs) == samples
