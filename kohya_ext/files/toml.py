"""TOML, read by whatever this Python has."""

from __future__ import annotations

import importlib
from typing import Any

from kohya_ext.core.errors import UsageError


def toml_loads(text: str) -> dict[str, Any]:
    """TOML by whatever reads it here: Python's own from 3.11 on, else what Kohya or pip bring along.

    Raises ValueError when `text` is not TOML, UsageError when nothing here reads it.
    """
    for module in ("tomllib", "tomli", "toml", "pip._vendor.tomli"):
        try:
            reader = importlib.import_module(module)
        except ImportError:
            continue
        try:
            document: dict[str, Any] = reader.loads(text)
        except ValueError:
            raise
        except (RecursionError, MemoryError) as error:
            raise ValueError("nested too deeply") from error
        except Exception as error:  # `toml` raises IndexErrors and others
            raise ValueError(f"not TOML ({type(error).__name__}: {error})") from error
        return document
    raise UsageError("no TOML reader in this Python: install `toml` there (pip install toml), then run again")
