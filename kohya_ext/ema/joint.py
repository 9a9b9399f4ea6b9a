"""Averages of the same weights, put together for one pass."""

from __future__ import annotations

from collections.abc import Sequence

from kohya_ext.ema.blend import Averaged


class Joint:
    """Remembers what it has put together for as long as nothing changes: a model has thousands of weights."""

    def __init__(self) -> None:
        self._lists: list[list[Averaged]] = []
        self._entries: list[Averaged] | None = None

    def of(self, lists: Sequence[list[Averaged]]) -> list[Averaged] | None:
        """The entries of all averages in one list; None where their weights, dtypes, places or layouts differ."""
        same = len(lists) == len(self._lists) and all(a is b for a, b in zip(lists, self._lists, strict=True))
        if not same:
            self._lists, self._entries = list(lists), _joined(lists)
        return self._entries


def _joined(lists: Sequence[list[Averaged]]) -> list[Averaged] | None:
    if len({len(averaged) for averaged in lists}) > 1:
        return None
    entries: list[Averaged] = []
    for rows in zip(*lists, strict=True):
        place, weights, _ = rows[0]
        shadows = tuple(shadow for _, _, some in rows for shadow in some)
        kinds = {(shadow.dtype, shadow.device, shadow.stride()) for shadow in shadows}
        if len(kinds) > 1 or any(other is not weights for _, other, _ in rows):
            return None
        entries.append((place, weights, shadows))
    return entries
