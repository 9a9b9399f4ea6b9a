"""How the runtime speaks: one line a message, on the main process only; and how it stops a run."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from kohya_ext.errors import WRONG_USAGE


def is_main_process() -> bool:
    """True in the process that speaks and saves: rank 0, or the only one."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) in ("", "0", "-1")


def say(message: str) -> None:
    """Print one line, prefixed, on the main process."""
    if is_main_process():
        print(f"kohya_ext: {message}", flush=True)


def stop(message: str, exit_code: int = WRONG_USAGE) -> NoReturn:
    """End the run: an explicitly given flag cannot be honoured. Raises SystemExit, which no `except Exception` eats."""
    print(f"kohya_ext: {message}", file=sys.stderr, flush=True)
    raise SystemExit(exit_code)
