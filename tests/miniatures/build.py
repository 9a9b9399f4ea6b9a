"""Miniature checkouts for tests: the demo's builder, under the name that tests use."""

from __future__ import annotations

from kohya_ext.demo.checkout import BY_NAME, ERAS, Era, build, files, training_root

__all__ = ["BY_NAME", "ERAS", "Era", "build", "files", "training_root"]
