"""A preset's words on its memory are made of the figures of a preflight."""

from __future__ import annotations

from typing import Any

from kohya_ext.presets.memory_text import PARTS, PHASES, figures, memory_text
from kohya_ext.spec.cards import GIB

REPORT: dict[str, Any] = {
    "peak_bytes": 36.84 * GIB,
    "low_bytes": 33.7 * GIB,
    "high_bytes": 43.66 * GIB,
    "phases": [{"name": "forward", "bytes": 3}, {"name": "backward", "bytes": 5}, {"name": "saving", "bytes": 4}],
    "parts": {"weights": 12.6 * GIB, "gradients": 0.01 * GIB, "activations": 20.7 * GIB, "overhead": 3.5 * GIB},
}


def test_the_figures_and_their_words() -> None:
    found = figures(REPORT, "kohya_ss v26.0.0")
    assert found["gib"] == {"expected": 36.8, "low": 33.7, "high": 43.7}
    assert memory_text(found) == (
        "36.8 GiB at the peak (33.7 to 43.7), in the backward pass: weights 12.6, activations 20.7, CUDA besides "
        "tensors (a guess) 3.5. Counted by kohya-ext preflight on kohya_ss v26.0.0, for one image of 1024x1024; not "
        "measured on a card."
    )


def test_words_for_every_part_and_phase() -> None:
    for phase in PHASES:
        phases = [{"name": phase, "bytes": 1}]
        parts = dict.fromkeys(PARTS, GIB)
        said = memory_text(figures({**REPORT, "phases": phases, "parts": parts}, "x"))
        assert PHASES[phase] in said
        assert all(f"{words} 1.0" in said for words in PARTS.values())
