"""Words like eps=1e-8, of --optimizer_args and --lr_scheduler_args, as sd-scripts reads them."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any


def named_arguments(words: Iterable[Any] | None) -> dict[str, Any]:
    """What such words say: the last of several counts. What the scripts cannot read is absent."""
    found: dict[str, Any] = {}
    for word in words or ():
        name, equals, text = str(word).partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if equals:
            found[name] = value
    return found
