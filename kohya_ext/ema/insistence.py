"""Finishing what must not be left half done, through interruptions."""

from __future__ import annotations

from collections.abc import Callable

# How often it is begun again before that counts as a failure.
_PATIENCE = 10


def insist(attempt: Callable[[], None]) -> None:
    """Call `attempt` until it has returned, in spite of interruptions; the last one is raised after that.

    Args:
        attempt: may be interrupted anywhere, and continues where it was when it is called again.
    """
    interruption: BaseException | None = None
    for _ in range(_PATIENCE):
        try:
            attempt()
        except BaseException as error:  # noqa: PERF203  (each attempt can be interrupted)
            interruption = error
        else:
            break
    if interruption is not None:
        raise interruption
