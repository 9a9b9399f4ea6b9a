"""A pipe under the name of one of our records in an environment: told, never waited for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.install import package, worksite
from kohya_ext.install.installed import compare
from kohya_ext.install.worksite import Site

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def within_seconds(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, which it must do without anybody writing into the pipe."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(call())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert came, "it waits for the pipe"
    return came[0]


def test_the_register(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / worksite.REGISTER)
    environment: Any = SimpleNamespace(purelib=tmp_path)
    assert within_seconds(lambda: package.read_register(environment)) == package.Register(False, ())


@pytest.mark.parametrize("name", ["RECORD", "direct_url.json"])
def test_the_metadata(tmp_path: Path, name: str) -> None:
    info = tmp_path / "kohya_ext-1.0.dist-info"
    info.mkdir()
    (tmp_path / "kohya_ext").mkdir()
    os.mkfifo(info / name)
    assert within_seconds(lambda: compare(tmp_path)).condition == "partial"


def test_the_record_of_an_exchange(tmp_path: Path) -> None:
    site = Site(tmp_path, tmp_path / "bin")
    site.work.mkdir()
    os.mkfifo(site.work / worksite.PENDING)
    found = within_seconds(lambda: worksite.recover(site))
    assert isinstance(found, ConflictError) and "is a pipe, not a file" in str(found)
