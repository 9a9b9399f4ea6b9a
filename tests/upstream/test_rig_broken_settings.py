"""Broken settings on the real scripts: a preflight stops where the run stops, with its words, and names the setting."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from kohya_ext.cli.main import main
from tests.upstream import rig
from tests.upstream.rig_bench import MAIN, NEWEST, OLD
from tests.upstream.rig_broken import OF, broken
from tests.upstream.rig_traced import data_of, flags_of, surroundings

pytestmark = pytest.mark.upstream

SAME = 6  # words of the message that the run says as well
TRAINING = ("--optimizer_type=AdamW", "--learning_rate=1e-4", "--mixed_precision=no", "--max_train_epochs=1")
EVERY = {MAIN: tuple(OF), NEWEST: tuple(OF), OLD: ("sdxl_train", "sdxl_train_network", "fine_tune", "train_network")}
LATER = {  # tree -> what it does not refuse yet, or has not
    OLD: {"fused", "buckets"},
}
CASES = [
    (tree, script, name)
    for tree, scripts in EVERY.items()
    for script in scripts
    for name in broken(script)
    if name not in LATER.get(tree, ())
]


@pytest.mark.parametrize(("tree", "script", "name"), CASES)
def test_a_preflight_stops_where_the_run_does(
    tree: str,
    script: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rig.require_rig(tree)
    settings, file = broken(script)[name], f"{script}.py"
    data = data_of(file, tmp_path)
    if not settings.images:
        for image in tmp_path.rglob("*.png"):
            image.unlink()
    for key, value in surroundings(file).items():
        monkeypatch.setenv(key, value)
    output = (f"--output_dir={tmp_path / 'out'}", "--output_name=broken")
    flags = (*flags_of(file), *data, *output, *TRAINING, *settings.flags)
    folder, python = rig.work() / "trees" / tree, rig.work() / "venv" / rig.environment(tree) / "bin" / "python"
    code = main(["preflight", str(folder), "--python", str(python), "--json", "--only", "start", "--", file, *flags])
    error = json.loads(capsys.readouterr().out)["start"]["error"]
    assert (code, error is None) == (1, False)
    assert settings.says in error["message"]
    assert error["field"] in settings.fields
    assert error["fix"]
    done = subprocess.run([str(python), file, *flags], cwd=folder, capture_output=True, text=True, timeout=600)
    if error["type"] == "ended":  # it logs why, trains nothing, and calls that a success
        assert not list((tmp_path / "out").glob("*.safetensors"))
        return
    assert done.returncode != 0
    assert " ".join(words(error["message"])[:SAME]) in " ".join(words(done.stdout + done.stderr))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
