"""Miniature checkouts for tests: the demo's builder, under the name that tests use."""

from __future__ import annotations

from kohya_ext.demo.checkout import BY_NAME, Era, build, files, training_root
from kohya_ext.demo.templates import ERAS

__all__ = ["BY_NAME", "ERAS", "Era", "build", "files", "training_root"]
