"""Numbers and switches that a user has put into quotes: texts to an optimizer, which seldom takes any."""

from __future__ import annotations

import ast

import pytest

from kohya_ext.presets.optimizer_choice import text_faults
from kohya_ext.spec.kohyas_optimizers import ARGUMENTS, READS_TEXTS, SWITCHES, UNTOLD

TEXTS = (
    "betas='0.95,0.98'",
    "weight_decay='0.01'",
    'eps="1e-8"',
    "betas=0.9,0.99",
    "weight_decay=0.01",
    "amsgrad=True",
)


def faults(optimizer: str, word: str) -> list[tuple[str, bool]]:
    return [(one.level, one.stops) for one in text_faults(optimizer, [word])]


@pytest.mark.parametrize("word", TEXTS)
def test_torch_refuses_the_same_texts(word: str) -> None:
    torch = pytest.importorskip("torch")
    name, _, text = word.partition("=")
    refused = False
    try:
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], **{name: ast.literal_eval(text)})
    except TypeError:
        refused = True
    assert faults("AdamW", word) == faults("", word) == ([("error", True)] if refused else [])


@pytest.mark.parametrize(
    ("optimizer", "word", "expected"),
    [
        ("Lion8bit", "betas='0.95,0.98'", [("error", True)]),
        ("Prodigy", "d_coef='2'", [("error", True)]),
        ("AdamW8bit", "betas='0.95,0.98'", []),  # bitsandbytes reads it
        ("AdamW8bit", "weight_decay='0.01'", [("error", True)]),
        ("Adafactor", "relative_step='False'", [("error", False)]),
        ("Adafactor", "relative_step='True'", []),
        ("Prodigy", "decouple=''", []),
        ("mine.Optimizer", "mode='fast'", []),
        ("AdamW", "new_in_torch='x'", []),
    ],
)
def test_texts_in_quotes(optimizer: str, word: str, expected: list[tuple[str, bool]]) -> None:
    assert faults(optimizer, word) == expected


def test_the_tables_name_arguments_that_there_are() -> None:
    every = frozenset().union(*ARGUMENTS.values())
    assert every >= (SWITCHES | UNTOLD)
    assert all(names <= ARGUMENTS[optimizer] for optimizer, names in READS_TEXTS.items())
