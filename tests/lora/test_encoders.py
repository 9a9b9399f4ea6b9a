"""The rule about text encoders, and that it always says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kohya_ext.lora.checkpoint import open_checkpoint
from kohya_ext.lora.encoders import Decision, decide
from tests.lora import models

Judge = Callable[..., list[Decision]]

FIRST, SECOND = "conditioner.embedders.0", "conditioner.embedders.1"


@pytest.fixture
def judge(tmp_path: Path, base_weights: dict[str, Tensor]) -> Judge:
    base = models.save(base_weights, tmp_path / "base.safetensors")

    def run(
        tuned: dict[str, Tensor], rule: str, minimum: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> list[Decision]:
        path = models.save(tuned, tmp_path / "tuned.safetensors", dtype)
        return decide(open_checkpoint(base), open_checkpoint(path), rule, minimum)

    return run


def test_each_for_itself(judge: Judge, base_weights: dict[str, Tensor]) -> None:
    first, second = judge(models.changed(base_weights, (SECOND,)), "auto")
    assert first.included and first.reason.startswith("kept: a weight differs by ")
    assert not second.included and second.reason == "dropped: no weight differs"


def test_a_small_change_counts_unless_a_minimum_is_set(judge: Judge, base_weights: dict[str, Tensor]) -> None:
    """What sd-scripts' 0.01 swallows."""
    tuned = models.changed(base_weights, size=1e-5)
    assert [decision.included for decision in judge(tuned, "auto")] == [True, True]
    dropped = judge(tuned, "auto", 0.01)
    assert not any(decision.included for decision in dropped)
    assert all("more than --min-diff 0.01 (largest " in decision.reason for decision in dropped)


def test_together_is_the_rule_of_sd_scripts(judge: Judge, base_weights: dict[str, Tensor]) -> None:
    tuned = models.changed(base_weights, (FIRST,))
    assert [decision.included for decision in judge(tuned, "together", 1e-6)] == [True, True]
    assert not any(decision.included for decision in judge(tuned, "together", 10.0))


def test_rounding_to_a_storage_type_is_no_change(judge: Judge, base_weights: dict[str, Tensor]) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        decisions = judge(base_weights, "auto", dtype=dtype)
        assert not any(decision.included for decision in decisions)
        assert all("rounding when stored" in decision.reason for decision in decisions)


def test_by_order(judge: Judge, base_weights: dict[str, Tensor]) -> None:
    assert all(decision.included for decision in judge(base_weights, "all"))
    assert not any(decision.included for decision in judge(models.changed(base_weights), "none"))


def test_an_encoder_that_one_model_lacks(judge: Judge, base_weights: dict[str, Tensor]) -> None:
    tuned = {key: value for key, value in models.changed(base_weights).items() if not key.startswith(SECOND)}
    first, second = judge(tuned, "all")
    assert first.included and not second.included
    assert second.reason == "dropped: tuned.safetensors does not contain it"
