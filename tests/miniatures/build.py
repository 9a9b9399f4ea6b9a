"""Miniature checkouts for tests: the demo's builder, and what only tests do with them."""

from __future__ import annotations

from pathlib import Path

from kohya_ext.demo.checkout import BY_NAME, Era, build, files
from kohya_ext.demo.templates import ERAS

__all__ = ["BY_NAME", "ERAS", "Era", "build", "files", "training_root"]


def training_root(root: Path) -> Path:
    """The folder of the miniature at `root` that holds the training scripts."""
    return root / "sd-scripts" if (root / "sd-scripts").is_dir() else root
