"""What runs with the same settings have measured on this machine."""

from __future__ import annotations

from pathlib import Path

from kohya_ext.core.about import MANIFEST
from kohya_ext.spec.cards import GIB
from kohya_ext.spec.measurements import FILE_NAME, Measured, newest

# Of a card's memory, what torch does not reserve itself: CUDA's context with its kernels. Low, expected and high.
CONTEXT = (0.3 * GIB, 0.6 * GIB, 1.2 * GIB)


def measured_here(root: Path, settings: str) -> Measured | None:
    """The newest measurement of a run with these settings.

    Args:
        root: the checkout.
        settings: their digest, of `kohya_ext.spec.measurements`.

    Returns:
        None where there is none, or the file cannot be read.
    """
    try:
        text = ((root / MANIFEST).parent / FILE_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return newest(text.splitlines(), settings)
