"""Checkouts built once a session and copied for each test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from tests.checkout import trees

PRESETS = {"presets/finetune/ours with space.json": b'{"optimizer": "AdaCoor"}\n'}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it has written; only a power failure would, and that is not tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One pristine checkout per era."""
    folder = tmp_path_factory.mktemp("templates")
    return {era: build(folder / era) for era, build in trees.BUILDERS.items()}


@pytest.fixture
def make(templates: dict[str, Path], tmp_path: Path) -> Callable[..., Checkout]:
    """A fresh checkout of an era; `name` is its folder."""

    def build(era: str, name: str = "checkout") -> Checkout:
        return describe(trees.copy(templates[era], tmp_path / name))

    return build


@pytest.fixture(params=list(trees.BUILDERS))
def checkout(request: pytest.FixtureRequest, make: Callable[..., Checkout]) -> Checkout:
    """Each era in turn."""
    return make(request.param)


@pytest.fixture
def presets() -> Callable[[Checkout], dict[str, bytes]]:
    """What an install puts next to the patch, where there is a GUI."""
    return lambda checkout: PRESETS if checkout.presets_dir else {}


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
