"""The memory that presets state is what a preflight counts on a real kohya_ss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.preset_memory import counted
from kohya_ext.presets.document import find_bundled
from kohya_ext.presets.memory_text import figures
from tests.upstream import rig

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

TREE, ENVIRONMENT = "kohya_ss-v26", "main"
CLOSE = 0.15  # GiB: figures are stated to a tenth


@pytest.mark.parametrize("name", ["AdaCoor-48GB", "AdaCoor-24GB", "LoRA-AdaCoor-24GB"])
def test_what_a_preset_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.environ.get("RIG_WORK") or not (rig.work() / "trees" / TREE).is_dir():
        pytest.skip(f"needs the training rig's {TREE}: set RIG_WORK")
    monkeypatch.delenv("RIG_TINY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(os.environ["KOHYA_RIG"]) / "shim"))
    python = str(rig.work() / "venv" / ENVIRONMENT / "bin" / "python")
    found = figures(counted([name, str(rig.work() / "trees" / TREE)], python), "")
    stated = find_bundled(name).about["vram"]
    assert found["phase"] == stated["phase"]
    assert found["gib"] == pytest.approx(stated["gib"], abs=CLOSE)
    assert found["parts"] == pytest.approx(stated["parts"], abs=CLOSE)
