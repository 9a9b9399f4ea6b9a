"""The digest of a preset's settings, told from text alone, is the one of the run that the GUI would start."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.core.errors import UnsupportedError
from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.presets.check import effective
from kohya_ext.presets.document import bundled
from kohya_ext.presets.explained import measured_as
from kohya_ext.presets.fit import fit_to_release
from kohya_ext.presets.launch_command import commands_of_form
from kohya_ext.presets.release import Release, read_release
from tests.upstream import rig

pytestmark = pytest.mark.upstream

READ = Path(__file__).with_name("read_settings.py")
TREES = {"kohya_ss-v22": "v22", "kohya_ss-v26": "main"}


@pytest.mark.parametrize("tree", TREES)
def test_the_digest_is_that_of_the_run(tree: str, tmp_path: Path) -> None:
    folder = rig.work() / "trees" / tree if os.environ.get("RIG_WORK") else None
    if folder is None or not folder.is_dir():
        pytest.skip(f"needs the training rig's {tree}: set RIG_WORK")
    checkout = describe(folder)
    told: dict[str, str | None] = {}
    requests: list[Any] = []
    for preset in bundled():
        release = read_release(checkout, preset.tab, patched=True)
        try:
            values = fit_to_release(preset, release).values
        except UnsupportedError:
            continue
        told[preset.name] = measured_as(values, release)
        requests.append(launched(values, release))
    assert len(told) >= 7 and None not in told.values()
    assert len(set(told.values())) == len(told)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(requests))
    python = rig.work() / "venv" / TREES[tree] / "bin" / "python"
    variables = {**os.environ, "PYTHONPATH": f"{rig.BUNDLE}{os.pathsep}{os.environ['KOHYA_RIG']}/shim"}
    done = subprocess.run(
        [str(python), str(READ), str(checkout.training_root), str(request)],
        env=variables, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert dict(zip(told, json.loads(done.stdout.splitlines()[-1]), strict=True)) == told


def launched(values: dict[str, Any], release: Release) -> list[Any]:
    """Script, words and file of settings of the command that the GUI runs."""
    launch = commands_of_form(effective(values, release), release)
    assert launch is not None
    words = shlex.split(launch.training) if isinstance(launch.training, str) else list(launch.training or ())
    at = next(index for index, word in enumerate(words) if word.endswith(".py"))
    command = ScriptCommand(Path(words[at]).name, words[at + 1 :])
    command.drop("config_file")
    return [command.script, command.words, next(iter(launch.toml.values()), {})]
