"""Inside a running Kohya: our flags, our optimizer and the EMA, wrapped around Kohya's functions by name.

The installer's lines in `library/__init__.py` and `kohya_gui/__init__.py` call `activate`, those it appends to single
files call `install`. Both are called in the GUI and in every DataLoader worker too, so this module stays light; torch
is imported only by a run that uses it. Whatever fails in here prints one line and leaves Kohya as it was.
"""

from __future__ import annotations

from typing import Any

from kohya_ext.runtime.report import say

__all__ = ["activate", "install"]


def activate(package: str) -> None:
    """Wrap, from now on, what the modules of `package` define as they are imported. Idempotent, never raises."""
    try:
        from kohya_ext.runtime.importhook import watch

        watch(package)
    except Exception as error:
        say(f"could not hook into {package!r}, Kohya runs as if kohya_ext were absent: {error!r}")


def install(namespace: dict[str, Any]) -> None:
    """Wrap what one module defines; `namespace` is its globals(), complete. Idempotent, never raises."""
    try:
        from kohya_ext.runtime.wrapping import wrap_module

        wrap_module(namespace)
    except Exception as error:
        say(f"could not hook into {namespace.get('__name__')!r}, it stays as it was: {error!r}")
