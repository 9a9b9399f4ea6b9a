"""Every verb on odd input: a code of ours, no trace, bounded time and memory, and no file changed when refused.

The default run tries a few hundred inputs on miniatures. The slow one tries KOHYA_EXT_FUZZ (20,000) inputs from
KOHYA_EXT_FUZZ_SEED on, on real trees as well where the environment names git directories of Kohya; faults are also
appended to the file KOHYA_EXT_FUZZ_LOG as they are found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import UPSTREAM
from tests.fuzz.drive import Tally, clear, fuzz
from tests.fuzz.verbs import KINDS, NEVER, kind_of, verbs
from tests.fuzz.world import World

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to bound each input")
SMOKE = 250
RELEASES = ("v22.6.2", "v25.2.1", "master")
PARTS = 8  # so that several processes can share the work


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = World(tmp_path / "world")
    _warm()
    yield made
    clear(made)


def _warm() -> None:
    """What commands import late is imported before the forks, so that each need not do it again."""
    import kohya_ext.dataset.audit
    import kohya_ext.install.apply
    import kohya_ext.presets.release  # noqa: F401


def _said(tally: Tally) -> str:
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(tally.codes.items()))
    return f"exit codes {codes}; slowest {tally.slowest:.1f} s, largest {tally.largest} MB, {len(tally.faults)} faults"


def test_every_argument_of_every_verb_is_fuzzed() -> None:
    """A new verb is fuzzed by itself; a new argument needs a word on what it takes."""
    unknown = {
        f"{' '.join(words)}: {action.dest}"
        for words, parser in verbs().items()
        for action in parser._actions
        if action.dest not in ("help", *NEVER) and kind_of(action) is None
    }
    assert not unknown, f"say in tests/fuzz/verbs.py (KINDS) what these take: {sorted(unknown)}"
    assert set(KINDS.values()) >= {"checkout", "folder", "model", "preset", "new"}


def test_a_few_inputs(world: World) -> None:
    tally = fuzz(world, seed=1, count=SMOKE)
    assert not tally.faults, "\n".join(tally.faults[:10])
    assert sum(tally.codes.values()) == SMOKE and len(tally.codes) > 2, _said(tally)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_many_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None], part: int
) -> None:
    real: dict[str, Path] = {}
    if all(os.environ.get(name) for name in UPSTREAM):
        from tests.upstream.trees import export_kohya, export_sd_scripts

        real = {f"kohya {name}": export_kohya(name, tmp_path / name) for name in RELEASES}
        real["sd-scripts main"] = export_sd_scripts("main", tmp_path / "main")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = World(tmp_path / "world", real)
    _warm()
    wanted, seed = int(os.environ.get("KOHYA_EXT_FUZZ", "20000")), int(os.environ.get("KOHYA_EXT_FUZZ_SEED", "1"))
    first, end = (wanted * share // PARTS for share in (part, part + 1))
    count = end - first
    log = os.environ.get("KOHYA_EXT_FUZZ_LOG")
    tally = fuzz(made, seed, count, first=first, log=Path(log) if log else None)
    record_property("fuzz", _said(tally))
    print(f"\n{count} inputs of seed {seed} on {len(real)} real trees: {_said(tally)}; {dict(tally.verbs)}")
    assert not tally.faults, "\n".join(tally.faults[:20])
