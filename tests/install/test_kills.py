"""A share of the kill sweeps on every run, and all of them with --slow: KOHYA_EXT_KILLS=3000 says how many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import kill_real, kill_sweep

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")

KILLS = int(os.environ.get("KOHYA_EXT_KILLS", "240"))
REAL_SHARE = 0.1


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kill_sweep.World]:
    with kill_sweep.light():
        yield kill_sweep.build(tmp_path_factory.mktemp("worlds"), "embedded")


@pytest.mark.parametrize("verb", [*kill_sweep.VERBS])
def test_some_boundaries(pristine: kill_sweep.World, tmp_path: Path, verb: str) -> None:
    landed = kill_sweep.sweep(pristine, tmp_path, verb, 6, seed=int(os.environ.get("KOHYA_EXT_SEED", "0")))
    assert landed["before"] + landed["after"] == 6


def test_install_and_uninstall_at_once(pristine: kill_sweep.World, tmp_path: Path) -> None:
    landed = kill_sweep.two_at_once(pristine, tmp_path, 4, seed=0)
    assert landed["on"] + landed["off"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "kills"), kill_sweep.shares(round(KILLS * (1 - REAL_SHARE))).items())
def test_every_boundary_and_random_times(pristine: kill_sweep.World, tmp_path: Path, verb: str, kills: int) -> None:
    run = kill_sweep.two_at_once if verb == "two at once" else None
    landed = run(pristine, tmp_path, kills, 1) if run else kill_sweep.sweep(pristine, tmp_path, verb, kills, 1)
    assert landed["kills"] == kills
    assert landed["killed in between"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", list(kill_real.COMMANDS))
def test_the_command_with_a_real_pip(tmp_path: Path, verb: str) -> None:
    kill_real.build(tmp_path)
    kills = max(1, round(KILLS * REAL_SHARE / len(kill_real.COMMANDS)))
    landed = kill_real.sweep(tmp_path, verb, kills, seed=1)
    assert landed["before"] + landed["after"] == kills
