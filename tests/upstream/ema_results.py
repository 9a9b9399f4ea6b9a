"""What the rig's tests have shown of each training script: of it the documentation makes its table.

KOHYA_EXT_EMA_RESULTS names the file that is brought up to date: `RESULTS`, where the page is to say so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kohya_ext.core.about import VERSION

RESULTS = Path(__file__).with_name("ema_results.json")
VARIABLE = "KOHYA_EXT_EMA_RESULTS"


@contextmanager
def recorded(script: str, tree: str) -> Iterator[None]:
    """Keep that this script of this tree has passed, or, where the test fails, that nothing is known of it."""
    _keep(script, tree, None)
    yield
    _keep(script, tree, f"{datetime.now(timezone.utc):%Y-%m-%d}, kohya_ext {VERSION}")


def keep_releases(releases: Mapping[str, Mapping[str, str]]) -> None:
    """Keep which scripts each tree has (script -> tree -> how it saves)."""
    if target := os.environ.get(VARIABLE):
        _write(Path(target), {**_read(Path(target)), "releases": releases})


def _keep(script: str, tree: str, value: str | None) -> None:
    if not (target := os.environ.get(VARIABLE)):
        return
    results = _read(Path(target))
    row = results.setdefault("runs", {}).setdefault(script, {})
    row.pop(tree, None)
    if value is not None:
        row[tree] = value
    _write(Path(target), results)


def _read(file: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return results


def _write(file: Path, results: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
