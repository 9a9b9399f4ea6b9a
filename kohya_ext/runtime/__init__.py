"""Inside a running Kohya: our flags, our optimizer and the EMA, wrapped around Kohya's functions by name.

The installer's lines in `library/__init__.py` and `kohya_gui/__init__.py` call `activate`, those it appends to single
files call `install`. Both are called in the GUI and in every DataLoader worker too, so this module stays light; torch
is imported only by a run that uses it. Whatever fails in here prints one line and leaves Kohya as it was.

All that a run without our flags needs is imported right away: the package may be updated or removed while it runs.
"""

from __future__ import annotations

from typing import Any

from kohya_ext.runtime.run import not_hooked

__all__ = ["activate", "install"]


def activate(package: str, *, guarded: bool = False) -> None:
    """Wrap, from now on, what the modules of `package` define as they are imported. Idempotent.

    guarded: the caller deals with whatever is raised, as our lines do since their second form; else nothing is raised.
    """
    try:
        from kohya_ext.runtime.wrapping import watch

        watch(package)
    except (Exception, SystemExit) as error:
        if guarded:
            raise
        not_hooked(package, error)


def install(namespace: dict[str, Any], *, guarded: bool = False) -> None:
    """Wrap what one module defines; `namespace` is its globals(), complete. As `activate` otherwise."""
    try:
        from kohya_ext.runtime.wrapping import wrap_module

        wrap_module(namespace)
    except (Exception, SystemExit) as error:
        if guarded:
            raise
        not_hooked(str(namespace.get("__name__")), error)
