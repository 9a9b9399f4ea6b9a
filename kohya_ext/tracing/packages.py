"""Packages whose code needs a GPU, a network or contents: replaced, or put in place where they are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kohya_ext.tracing.files_of_models import replace_readers
from kohya_ext.tracing.kernels import replace_kernels
from kohya_ext.tracing.tokenizers import replace_loader


def replace_packages(request: dict[str, Any], folder: Path, notes: list[str]) -> None:
    """Replace what this process has loaded, and what it would load.

    Args:
        request: see `kohya_ext.preflight.child.Request`.
        folder: for files of stand-ins.
        notes: gets a line for each stand-in that a script comes to use.
    """
    for owner, name, value in replace_readers(frozenset(request["unknown_models"])):
        setattr(owner, name, value)
    replace_loader(folder, notes)
    words = [word for command in request["commands"] for word in command]
    files = [Path(word.partition("=")[2] or word) for word in words if word.endswith(".toml")]
    replace_kernels(notes, " ".join([*words, *(file.read_text("utf-8") for file in files if file.is_file())]))
    _without_trackers()


def _without_trackers() -> None:
    """Nothing is logged anywhere, and no state of an earlier run is loaded."""
    import accelerate

    for name in ("init_trackers", "log", "end_training", "load_state", "save_state"):
        setattr(accelerate.Accelerator, name, lambda self, *args, **kwargs: None)
