"""Verdicts on cards, and changes that make a run fit."""

from __future__ import annotations

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.preflight.changes import applicable, changed
from kohya_ext.preflight.memory import card_memory, judged
from kohya_ext.spec.cards import GIB


@pytest.mark.parametrize(
    ("name", "size"),
    [("24GB", 24), ("24", 24), ("11.5 GiB", 11.5), ("RTX 4090", 24), ("rtx4090", 24), ("4090", 24), ("a100", 80),
     ("NVIDIA GeForce RTX 3060", 12)],
)  # fmt: skip
def test_cards(name: str, size: float) -> None:
    assert card_memory(name) == int(size * GIB)


@pytest.mark.parametrize("name", ["", "RTX 9999x", "0GB", "-1", "nan", "9" * 500])
def test_no_card(name: str) -> None:
    with pytest.raises(UsageError, match="--card"):
        card_memory(name)


def counted(size: float) -> dict[str, list[dict[str, object]]]:
    return {"phases": [{"name": "forward", "bytes": int(size * GIB), "parts": {"weights": int(size * GIB)}}]}


@pytest.mark.parametrize(("size", "verdict"), [(10, "fits"), (20, "tight"), (24, "does not fit")])
def test_verdicts(size: float, verdict: str) -> None:
    memory = judged(counted(size), 24 * GIB)
    assert memory is not None
    assert memory.verdict == verdict
    assert sum(memory.parts.values()) == memory.peak


def test_nothing_counted() -> None:
    assert judged({}, 24 * GIB) is None
    assert judged(counted(0), None) is None


def test_changes_by_what_they_cost() -> None:
    known = frozenset({"cache_latents", "fused_backward_pass", "gradient_checkpointing", "cache_text_encoder_outputs"})
    given = {"optimizer_type": "AdaCoor", "train_text_encoder": True, "train_batch_size": "4"}
    names = [change.text for change in applicable(given, known)]
    assert names == ["cache the latents", "a fused backward pass", "gradient checkpointing", "batch size 1"]
    command = changed(ScriptCommand("s.py", ["--train_batch_size=4"]), applicable(given, known))
    assert command.words[-1] == "--train_batch_size=1"
    assert "--fused_backward_pass" in command.words
    assert "--train_batch_size=4" not in command.words


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer_type": "AdamW"},
        {"optimizer_type": "Adafactor", "gradient_accumulation_steps": 2},
        {"optimizer_type": "Adafactor", "fused_backward_pass": True},
    ],
)
def test_no_fused_backward_pass(given: dict[str, object]) -> None:
    found = applicable(given, frozenset({"fused_backward_pass"}))
    assert "a fused backward pass" not in [change.text for change in found]
