"""Our bucketing against Kohya's own: the same bucket for every size."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from kohya_ext.dataset.buckets import Bucketing
from tests.upstream import rig

pytestmark = pytest.mark.upstream

ASK = """
import json, sys
from library.train_util import BucketManager
answers = []
for no_upscale, sizes in json.load(sys.stdin):
    manager = BucketManager(no_upscale, (1024, 1024), 256, 2048, 64)
    if not no_upscale:
        manager.make_buckets()
    answers.append([manager.select_bucket(*size)[0] for size in sizes])
print("ANSWER" + json.dumps(answers, default=int))
"""


@pytest.mark.parametrize("tree", list(rig.TREES))
def test_the_same_bucket_for_every_size(tree: str) -> None:
    rig.require_rig(tree)
    generator = random.Random(1)
    sizes = [(generator.randint(200, 5000), generator.randint(200, 5000)) for _ in range(5000)]
    sizes += [(w, h) for w in range(256, 2049, 64) for h in (256, 512, 1024, 1088, 2048)]
    folder = rig.work() / "trees" / tree
    done = subprocess.run(
        [str(rig.work() / "venv" / rig.TREES[tree] / "bin" / "python"), "-c", ASK],
        input=json.dumps([[False, sizes], [True, sizes]]), capture_output=True, text=True, cwd=folder, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{folder}:{Path(os.environ['KOHYA_RIG']) / 'shim'}"},
    )  # fmt: skip
    assert "ANSWER" in done.stdout, done.stderr[-2000:]
    upscaled, as_they_are = json.loads(done.stdout.rpartition("ANSWER")[2])
    assert [list(Bucketing().place(*size).bucket) for size in sizes] == upscaled
    assert [list(Bucketing(no_upscale=True).place(*size).bucket) for size in sizes] == as_they_are
