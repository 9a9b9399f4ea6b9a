"""What runs with the same settings have measured on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.core.about import MANIFEST
from kohya_ext.spec.cards import GIB
from kohya_ext.spec.measurements import FILE_NAME

# Of a card's memory, what torch does not reserve itself: CUDA's context with its kernels. Low, expected and high.
CONTEXT = (0.3 * GIB, 0.6 * GIB, 1.2 * GIB)


@dataclass(frozen=True)
class Measured:
    """peak: bytes that torch had reserved, None without a GPU. seconds: of an optimizer step, None for a short run.

    died: whether the card's memory ended the run.
    """

    device: str
    peak: int | None
    seconds: float | None
    died: bool
    date: str

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "device": self.device,
            "peak_reserved_bytes": self.peak,
            "seconds_per_step": self.seconds,
            "out_of_memory": self.died,
            "date": self.date,
        }


def measured_here(root: Path, settings: str) -> Measured | None:
    """The newest measurement of a run with these settings.

    Args:
        root: the checkout.
        settings: their digest, of `kohya_ext.spec.measurements`.

    Returns:
        None where there is none, or the file cannot be read.
    """
    try:
        lines = ((root / MANIFEST).parent / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((found for line in reversed(lines) if (found := _read(line, settings)) is not None), None)


def _read(line: str, settings: str) -> Measured | None:
    try:
        found: Mapping[str, Any] = json.loads(line)
        if found["settings"] != settings:
            return None
        peak, seconds = found["peak_reserved_bytes"], found["seconds_per_step"]
        return Measured(
            str(found["device"]),
            None if peak is None else int(peak),
            None if seconds is None else float(seconds),
            bool(found["out_of_memory"]),
            str(found["date"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # a line that another version wrote, or that was cut off
