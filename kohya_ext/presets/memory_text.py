"""What a preset says about its memory, from the figures of a preflight that its file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kohya_ext.spec.cards import GIB

PHASES = {
    "loading": "while the models are loaded",
    "caching": "while images are encoded",
    "forward": "at the end of the forward pass",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer's step",
    "saving": "while it saves",
    "sampling": "while it makes sample images",
}
PARTS = {
    "weights": "weights",
    "text_encoders": "text encoders",
    "vae": "VAE",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "ema": "EMA",
    "activations": "activations",
    "copies": "16-bit copies of the weights",
    "overhead": "CUDA besides tensors (a guess)",
}
SHOWN = 0.05  # GiB: smaller parts are not named


def figures(report: Mapping[str, Any], release: str) -> dict[str, Any]:
    """What a preset's file keeps of a preflight.

    Args:
        report: the `memory` of `kohya-ext preflight --json`, in bytes.
        release: the one that it was counted on.
    """

    def rounded(size: float) -> float:
        return round(size / GIB, 1)

    peak = max(report["phases"], key=lambda one: one["bytes"])
    interval = {name: rounded(report[f"{key}_bytes"]) for name, key in (("expected", "peak"), ("low", "low"))}
    interval["high"] = rounded(report["high_bytes"])
    parts = {name: rounded(size) for name, size in report["parts"].items() if size >= SHOWN * GIB}
    return {"gib": interval, "phase": peak["name"], "parts": parts, "counted_on": release}


def memory_text(memory: Mapping[str, Any]) -> str:
    """The figures in words."""
    gib, parts = memory["gib"], memory["parts"]
    listed = ", ".join(f"{words} {parts[name]:.1f}" for name, words in PARTS.items() if name in parts)
    return (
        f"{gib['expected']:.1f} GiB at the peak ({gib['low']:.1f} to {gib['high']:.1f}), {PHASES[memory['phase']]}: "
        f"{listed}. Counted by kohya-ext preflight on {memory['counted_on']}, for one image of 1024x1024; not measured "
        "on a card."
    )
