"""Verdicts on cards, and changes that make a run fit."""

from __future__ import annotations

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.preflight.changes import one_by_one
from kohya_ext.preflight.memory import Memory, card_memory, judged
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


def with_ema(card: int | None, **more: float) -> Memory:
    """A run of 16 GiB at its peak with an EMA of 4."""
    steps = {"name": "optimizer", "bytes": 16 * GIB, "parts": {"weights": 12 * GIB, "ema": 4 * GIB}}
    saves = {"name": "saving", "bytes": 13 * GIB, "parts": {"weights": 13 * GIB}}
    memory = judged({"phases": [steps, saves], **more}, card)
    assert memory is not None
    assert sum(memory.parts.values()) == memory.peak
    return memory


@pytest.mark.parametrize(("card", "on_host"), [(48, False), (24, False), (22, True), (16, True)])
def test_an_ema_that_finds_no_room_goes_to_the_host(card: int, on_host: bool) -> None:
    """It must leave a fifth of the card free: 16 GiB with what a GPU takes besides are 18.1."""
    memory = with_ema(card * GIB, ema_free_share=0.2)
    assert memory.ema_on_host is on_host
    assert memory.as_json()["ema_on_host"] is on_host
    largest = max(memory.phases, key=lambda one: one["bytes"])
    assert largest["name"] == ("saving" if on_host else "optimizer")
    assert memory.parts.get("ema", 0) == (0 if on_host else 4 * GIB)


def test_an_ema_that_was_told_its_place_stays() -> None:
    assert not with_ema(16 * GIB).ema_on_host
    assert not with_ema(None, ema_free_share=0.2).ema_on_host


def test_nothing_counted() -> None:
    assert judged({}, 24 * GIB) is None
    assert judged(counted(0), None) is None


def tried(words: list[str], known: set[str], *, keep: set[str]) -> tuple[list[str], list[str]]:
    """Texts of the changes that are tried when those of `keep` are kept, and the words of the last command."""
    changes = one_by_one(ScriptCommand("s.py", words), frozenset(known))
    texts: list[str] = []
    kept, last = None, words
    while True:
        try:
            change, command = changes.send(kept)  # type: ignore[arg-type] # None at first
        except StopIteration:
            return texts, last
        texts.append(change.text)
        kept = change.text in keep
        last = command.words if kept else last


def test_our_optimizer_makes_a_fused_backward_pass_possible() -> None:
    words = ["--optimizer_type=AdamW", "--optimizer_args", "betas=.9,.99", "eps=1e-6", "--learning_rate=1e-5",
             "--learning_rate_te1=1e-6"]  # fmt: skip
    known = {"fused_backward_pass", "optimizer_type"}
    adacoor = "optimizer AdaCoor at learning rate 1"
    texts, last = tried(words, known, keep={adacoor, "a fused backward pass"})
    assert texts == ["optimizer AdamW8bit", adacoor, "a fused backward pass"]
    assert last == ["--optimizer_type=AdaCoor", "--learning_rate=1", "--optimizer_args", "eps=1e-8",
                    "--fused_backward_pass"]  # fmt: skip
    fused = f"{adacoor} with a fused backward pass"
    texts, last = tried([*words, "--learning_rate_te2=0"], known, keep={fused})
    assert texts == ["optimizer AdamW8bit", adacoor, fused]  # each of the two alone takes nothing off AdamW8bit
    assert last == ["--learning_rate_te2=0", "--optimizer_type=AdaCoor", "--learning_rate=1", "--optimizer_args",
                    "eps=1e-8", "--fused_backward_pass"]  # fmt: skip
    assert tried([*words, "--gradient_accumulation_steps=2"], known, keep=set())[0] == texts[:2]


def test_a_batch_is_halved_until_it_fits() -> None:
    words = ["--optimizer_type=AdaCoor", "--train_batch_size=10"]
    texts, last = tried(words, set(), keep={"batch size 5", "batch size 2"})
    assert texts == ["batch size 5", "batch size 2", "batch size 1"]
    assert last == ["--optimizer_type=AdaCoor", "--train_batch_size=2"]


def test_changes_by_what_they_cost() -> None:
    known = {"cache_latents", "fused_backward_pass", "gradient_checkpointing", "cache_text_encoder_outputs"}
    words = ["--optimizer_type=AdaCoor", "--train_text_encoder", "--train_batch_size=4"]
    every = {"cache the latents", "a fused backward pass", "gradient checkpointing", "batch size 2", "batch size 1"}
    texts, last = tried(words, known, keep=every)
    assert texts == ["cache the latents", "a fused backward pass", "gradient checkpointing", "batch size 2",
                     "batch size 1"]  # fmt: skip
    assert last == ["--optimizer_type=AdaCoor", "--train_text_encoder", "--cache_latents", "--fused_backward_pass",
                    "--gradient_checkpointing", "--train_batch_size=1"]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["--optimizer_type=AdamW"],
        ["--optimizer_type=Adafactor", "--gradient_accumulation_steps=2"],
        ["--optimizer_type=Adafactor", "--fused_backward_pass"],
    ],
)
def test_no_fused_backward_pass(words: list[str]) -> None:
    assert "a fused backward pass" not in tried(words, {"fused_backward_pass"}, keep=set())[0]
