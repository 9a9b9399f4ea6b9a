"""Errors that are meant for the user, and the exit code that each one ends a command with.

The codes are part of the public interface (`docs/reference/exit-codes.md`); a script may branch on them.
"""

from __future__ import annotations

from collections.abc import Iterable

DONE = 0
FOUND_PROBLEMS = 1
WRONG_USAGE = 2
UNSUPPORTED = 3
CONFLICT = 4
RECOVERED = 5
STOPPED_BY_SIGNAL = 75  # of a training, not of a command: a state has been saved (sysexits.h: try again later)


class KohyaExtError(Exception):
    """Base of every error we raise on purpose: the text says what was wrong, where, and what to do."""

    exit_code = FOUND_PROBLEMS


class UsageError(KohyaExtError):
    """The command line or an input file is wrong."""

    exit_code = WRONG_USAGE


class UnsupportedError(KohyaExtError):
    """Not a Kohya checkout, an incomplete checkout, or a release that lacks what we hook into."""

    exit_code = UNSUPPORTED


class ConflictError(KohyaExtError):
    """Something stands in the way (foreign edits, permissions, disk, another installer); nothing was changed."""

    exit_code = CONFLICT


class RecoveredError(KohyaExtError):
    """An interrupted transaction was recovered, so files have changed; what was asked for could not be done then."""

    exit_code = RECOVERED


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error about `word`: "; did you mean X?" where one of `known` is close to it, "" where none is."""
    import difflib  # here: it is needed for an error only

    folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]}?" if close else ""
