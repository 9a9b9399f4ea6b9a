"""`presets command` names the numbers that the form does not take: the run would not be the preset's without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.command import commands
from kohya_ext.presets.document import Preset
from kohya_ext.presets.launch_command import Surroundings
from kohya_ext.presets.project import Project
from kohya_ext.presets.release import read_release
from tests.presets import guis

WHERE = Surroundings("/kohya", "/env/bin/python", "/env/bin/accelerate", "20260101-000000")
TAB = f"{guis.REGISTRY_TAB}\nexecutor = None\n\ndef train_model(headless, print_only, learning_rate):\n"
GUI = f"{TAB}    executor.execute_command(['train', 'launch', str(learning_rate)])\n"


@pytest.mark.parametrize("rate, word", [(3, "changed from 3 to 1"), (1e-7, "")])
def test_a_rate_beyond_its_field_is_named(rate: float, word: str, tmp_path: Path) -> None:
    checkout = guis.write({**guis.REGISTRY, "kohya_gui/finetune_gui.py": GUI}, tmp_path / "kohya_ss")
    (tmp_path / "a.png").touch()
    values: dict[str, Any] = {"optimizer": "Lion", "learning_rate": rate, "create_caption": False}
    release = read_release(checkout, "finetune", patched=True)
    project = Project(tmp_path, "m", tmp_path / "out", "mine")
    result = commands(Preset("p", "finetune", values), release, checkout, project, WHERE)
    said = [one for one in result.complaints if "changed from" in one]
    assert len(said) == bool(word)
    assert all(word in one and "outside 0 to 1" in one for one in said)
