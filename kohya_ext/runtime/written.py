"""Model files that hold the EMA: written whole or not at all, and marked in their metadata."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# the functions upstream writes safetensors files with, under the names its modules import them by
_WRITERS = ("save_file", "mem_eff_save_file")
_PACKAGES = ("library", "networks", "__main__")


@contextmanager
def moved_into_place(target: str) -> Iterator[str]:
    """A path in a temporary folder beside `target`; all that is there at the end moves beside `target` at once.

    The name stays the same, because some savers derive the names of further files from it.
    """
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".kohya_ext-", dir=path.parent))
    try:
        yield str(folder / path.name)
        for made in sorted(folder.iterdir()):
            _flush(made)
            goal = path.parent / made.name
            if goal.is_dir():
                shutil.rmtree(goal)
            made.replace(goal)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    """Force the file's bytes to the disk, so that a name in place always stands for a whole file."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


@contextmanager
def with_metadata(extra: Mapping[str, str]) -> Iterator[None]:
    """While this lasts, every safetensors file that Kohya's modules write carries `extra` in its metadata."""
    import safetensors.torch

    replaced: list[tuple[ModuleType, str, Callable[..., Any]]] = []

    def give(module: ModuleType, name: str) -> None:
        writer = vars(module)[name]
        replaced.append((module, name, writer))
        setattr(module, name, _adding(writer, extra))

    give(safetensors.torch, "save_file")  # imported at call time by the network modules
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in _PACKAGES and isinstance(module, ModuleType):
            for name in _WRITERS:
                if callable(vars(module).get(name)):
                    give(module, name)
    try:
        yield
    finally:
        for module, name, writer in replaced:
            setattr(module, name, writer)


def _adding(writer: Callable[..., Any], extra: Mapping[str, str]) -> Callable[..., Any]:
    @functools.wraps(writer)
    def write(tensors: Any, filename: Any, metadata: Mapping[str, Any] | None = None, **named: Any) -> Any:
        return writer(tensors, filename, metadata={**(metadata or {}), **extra}, **named)

    return write
