"""What the audit says of odd image files against what Kohya's own reading of images makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.dataset import odd_images
from tests.upstream import rig

pytestmark = pytest.mark.upstream

# Globbed, measured, sorted into a bucket, loaded and cropped, as a training does it: what comes of each file.
ASK = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from library.train_util import BaseDataset, BucketManager, glob_images, load_image, trim_and_resize_if_required
folder, names = json.load(sys.stdin)
found = {os.path.basename(path) for path in glob_images(folder, "*")}
manager = BucketManager(False, (1024, 1024), 256, 2048, 64)
manager.make_buckets()
answers = {}
for name in names:
    if name not in found:
        answers[name] = ["skipped", ""]
        continue
    path = os.path.join(folder, name)
    try:
        width, height = BaseDataset.get_image_size(None, path)
        bucket, resized, _ = manager.select_bucket(width, height)
        trim_and_resize_if_required(False, load_image(path), bucket, resized)
        answers[name] = ["trains", ""]
    except Exception as error:
        answers[name] = ["stops", f"{type(error).__name__}: {error}"[:200]]
print("ANSWER" + json.dumps(answers))
"""
AUDIT = """
import json, sys
from pathlib import Path
from kohya_ext.dataset import tokens
from kohya_ext.dataset.audit import AuditSettings, audit
found = audit(Path(sys.argv[1]), AuditSettings(workers=2), tokens.counter(None))
print("ANSWER" + json.dumps([[one.code, one.path] for one in found.findings]))
"""
STOPS = {"unreadable", "truncated", "empty-file", "too-large", "no-bucket", "not-a-file"}
SKIPPED = {"not-read"}


def asked(python: Path | str, code: str, *words: str, given: str = "", path: str, folder: Path) -> Any:
    done = subprocess.run(
        [str(python), "-c", code, *words], input=given, capture_output=True, text=True, timeout=600, cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert "ANSWER" in done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout.rpartition("ANSWER")[2])


@pytest.mark.parametrize("tree", list(rig.TREES))
def test_trained_skipped_or_stopped_at(tree: str, tmp_path: Path) -> None:
    rig.require_rig(tree)
    folder = tmp_path / "1_odd"
    folder.mkdir()
    names = [path.name for path in odd_images.make(folder)]
    assert len(names) > 100
    root, python = rig.work() / "trees" / tree, rig.work() / "venv" / rig.environment(tree) / "bin" / "python"
    theirs = asked(
        python, ASK, given=json.dumps([str(folder), names]), folder=root,
        path=f"{root}:{Path(os.environ['KOHYA_RIG']) / 'shim'}",
    )  # fmt: skip
    findings = asked(
        python, AUDIT, str(tmp_path), path=str(rig.BUNDLE), folder=tmp_path
    )  # by Kohya's Python, as the docs say
    codes: dict[str, set[str]] = {name: set() for name in names}
    for code, path in findings:
        if (name := path.removeprefix("1_odd/")) in codes:
            codes[name].add(code)
    wrong = {}
    for name, (what, why) in theirs.items():
        ours = "skipped" if codes[name] & SKIPPED else "stops" if codes[name] & STOPS else "trains"
        if ours != what and not (name.startswith(".") or "." not in name or name.endswith(".bak")):
            wrong[name] = (what, why, ours, sorted(codes[name]))
    assert not wrong, "\n".join(f"{name}: {one}" for name, one in wrong.items())
