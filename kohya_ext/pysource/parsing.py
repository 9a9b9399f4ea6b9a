"""Python source of others, parsed and never run: bounded, and refused in one way whatever is wrong with it.

A tree of syntax takes up to two kilobytes a token, and Python's own parser gives up in four ways on source that is
nested too deeply, or crashes (3.10). The largest module of any Kohya release has 50,000 tokens.
"""

from __future__ import annotations

import ast
import gc
import re
import warnings
from itertools import islice

MOST_TOKENS = 200_000
_TOKEN = re.compile(r"\w+|[^\w\s]")
_TOKEN_BYTES = re.compile(rb"[\w\x80-\xff]+|[^\w\s]")


def tokens_in(source: str | bytes) -> int:
    """About how many tokens `source` has, counted up to a little more than are ever parsed."""
    found = _TOKEN.finditer(source) if isinstance(source, str) else _TOKEN_BYTES.finditer(source)
    return sum(1 for _ in islice(found, MOST_TOKENS + 1))


def parse(source: str | bytes) -> ast.Module:
    """The tree of a module. Raises SyntaxError for whatever is not one, and for what is larger than any module."""
    if tokens_in(source) > MOST_TOKENS:
        raise SyntaxError(f"more than {MOST_TOKENS} tokens, which no module of Kohya has")
    collecting = gc.isenabled()
    gc.disable()  # it would search the growing tree again and again
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream has strings with invalid escapes
            return ast.parse(source)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise SyntaxError(str(error) or "nested too deeply") from error
    finally:
        if collecting:
            gc.enable()
