"""Our bucketing against Kohya's own: the same bucket for every size."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from kohya_ext.dataset.buckets import Bucketing
from tests.upstream import rig

pytestmark = pytest.mark.upstream

ASK = """
import json, sys
from library.train_util import BucketManager
answers = []
for (resolution, smallest, largest, step, no_upscale), images in json.load(sys.stdin):
    manager = BucketManager(no_upscale, tuple(resolution), smallest, largest, step)
    if not no_upscale:
        manager.make_buckets()
    chosen = []
    for width, height, repeats in images:
        try:
            bucket = manager.select_bucket(width, height)[0]
        except (ZeroDivisionError, AssertionError):  # too narrow for any
            bucket = None
        chosen.append(bucket)
        for _ in range(repeats if bucket else 0):
            manager.add_image(bucket, "image")
    filled = {"%dx%d" % tuple(size): len(found) for size, found in zip(manager.resos, manager.buckets) if found}
    answers.append([chosen, filled])
print("ANSWER" + json.dumps(answers, default=int))
"""
# resolution, smallest and largest side, step, no upscaling
SETTINGS = (
    ((1024, 1024), 256, 2048, 64, False), ((1024, 1024), 256, 2048, 64, True), ((1024, 1024), 256, 1024, 64, False),
    ((512, 512), 256, 1024, 64, False), ((512, 768), 320, 1536, 32, False), ((768, 768), 256, 2048, 8, False),
    ((832, 1216), 512, 1536, 16, False), ((1536, 1024), 256, 4096, 128, False), ((640, 640), 256, 1024, 32, True),
    ((512, 512), 256, 1024, 8, True),
)  # fmt: skip
BELOW_THE_SMALLEST = ("kohya_ss-v22",)  # trees of sd-scripts up to 0.7.0


@pytest.mark.parametrize("tree", list(rig.TREES))
def test_the_same_bucket_and_count_for_every_size(tree: str) -> None:
    rig.require_rig(tree)
    generator = random.Random(1)
    images = [
        (generator.randint(200, 5000), generator.randint(200, 5000), generator.randint(1, 20)) for _ in range(5000)
    ]
    images += [(w, h, 1) for w in range(256, 2049, 64) for h in (256, 512, 1024, 1088, 2048)]
    images += [(w, h, 3) for w in (1, 30, 60_000) for h in (1, 30, 1000, 60_000)]
    folder = rig.work() / "trees" / tree
    done = subprocess.run(
        [str(rig.work() / "venv" / rig.TREES[tree] / "bin" / "python"), "-c", ASK],
        input=json.dumps([[one, images] for one in SETTINGS]), capture_output=True, text=True, cwd=folder, timeout=600,
        env={**os.environ, "PYTHONPATH": f"{folder}:{Path(os.environ['KOHYA_RIG']) / 'shim'}"},
    )  # fmt: skip
    assert "ANSWER" in done.stdout, done.stderr[-2000:]
    answers = json.loads(done.stdout.rpartition("ANSWER")[2])
    for settings, (chosen, filled) in zip(SETTINGS, answers, strict=True):
        bucketing = Bucketing(*settings, below_smallest=tree in BELOW_THE_SMALLEST)
        counts: Counter[str] = Counter()
        for (width, height, repeats), theirs in zip(images, chosen, strict=True):
            ours = bucketing.place(width, height).bucket
            if theirs is None or 0 in theirs:
                assert 0 in ours, (settings, width, height)
                continue
            assert list(ours) == theirs, (settings, width, height)
            counts[f"{ours[0]}x{ours[1]}"] += repeats
        assert counts == {size: count for size, count in filled.items() if 0 not in map(int, size.split("x"))}, settings
