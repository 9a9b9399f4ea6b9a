"""`--kohya_ext_log_every` on real input: our figures are in the logs that the real scripts write."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.upstream import rig
from tests.upstream.test_rig import Train, assert_identical, job, patched  # noqa: F401

pytestmark = pytest.mark.upstream

READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from pathlib import Path
scalars = {}
for file in Path(sys.argv[1]).rglob("events.out.*"):
    events = EventAccumulator(str(file.parent)).Reload()
    for tag in events.Tags()["scalars"]:
        scalars[tag] = [[event.step, event.value] for event in events.Scalars(tag)]
print(json.dumps(scalars))
"""


def scalars(environment: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    python = rig.work() / "venv" / environment / "bin" / "python"
    said = subprocess.run([str(python), "-c", READ, str(folder)], capture_output=True, text=True, check=True).stdout
    read: dict[str, list[tuple[int, float]]] = json.loads(said.splitlines()[-1])
    return read


def has_module(environment: str, module: str) -> bool:
    python = rig.work() / "venv" / environment / "bin" / "python"
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-c", program]).returncode == 0


@pytest.mark.parametrize("optimizer", ["AdaCoor", "AdamW", "Prodigy", "DAdaptAdam"])
def test_the_figures_are_in_the_logs_and_change_nothing(
    job: Train,  # noqa: F811
    patched: tuple[Path, str],  # noqa: F811
    tmp_path: Path,
    optimizer: str,
) -> None:
    if optimizer.startswith("DAdapt") and not has_module(patched[1], "dadaptation"):
        pytest.skip("this environment has no dadaptation")
    rate = ("--learning_rate=1e-4",) if optimizer == "AdamW" else ()
    flags = (f"--optimizer_type={optimizer}", *rate)
    plain = job(f"unmeasured-{optimizer}", *flags)
    run = job(f"measured-{optimizer}", *flags, f"--logging_dir={tmp_path}", "--kohya_ext_log_every=2")
    assert_identical(plain.tensors(), run.tensors())
    found = scalars(patched[1], tmp_path)
    ours = {tag: values for tag, values in found.items() if tag.startswith("kohya_ext/")}
    assert [step for step, _ in ours["kohya_ext/effective_lr/group0"]] == [2, 4]
    assert all(value > 0 for _, value in ours["kohya_ext/effective_lr/group0"])
    assert all(0 < value <= 1 for _, value in ours["kohya_ext/moved/group0"])
    assert ("kohya_ext/skipped_elements" in ours) == (optimizer == "AdaCoor")
    losses = next(values for tag, values in found.items() if tag in ("loss", "loss/current"))
    assert [step for step, _ in losses] == [1, 2, 3, 4]
