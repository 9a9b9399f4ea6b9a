"""Named points between two writes, where a process may be killed or the disk may be full.

Every step that changes something on the disk announces itself here, before and after. In production nothing listens;
the tests listen in order to raise an error or to kill the process at exactly that point.
"""

from __future__ import annotations

from collections.abc import Callable

listener: Callable[[str], None] | None = None


def crossed(name: str) -> None:
    """Announce that the boundary `name` is being crossed."""
    if listener is not None:
        listener(name)
