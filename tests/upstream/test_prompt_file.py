"""Our prompt files, read by Kohya's own functions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.evaluation.promptfile import Prompt, document
from kohya_ext.evaluation.promptsource import read
from tests.upstream import rig

pytestmark = pytest.mark.upstream

ASK = """
import json, sys
try:
    from library.sampling import load_prompts
except ImportError:
    from library.train_util import load_prompts
from library.sdxl_lpw_stable_diffusion import parse_prompt_attention
prompts = load_prompts(sys.argv[1])
for prompt in prompts:
    prompt["prompt"] = parse_prompt_attention(prompt.get("prompt", ""))
print("ANSWER" + json.dumps(prompts))
"""
TEXTS = (
    "a cat", "#1 in the race", "n people in a row", "S 5 stars", "w 20 wide", "half -- done --n not", "--d 5",
    "a (red:1.3) [apple]", "C:\\path\\ (x)", "fs 3", "\\(as it is\\)", "ss euler",
)  # fmt: skip
TABLES = {
    "prompts.toml": """
[prompt]
width = 1030
negative_prompt = "bad"
[[prompt.subset]]
prompt = "a cat --w 64"
seed = 0
[[prompt.subset]]
prompt = "n a dog"
height = 7
sample_steps = 5
scale = 4
""",
    "prompts.json": """
[{"prompt": "a cat --w 64", "seed": 3, "negative_prompt": null, "steps": 9},
 "# a dog --w 1030 --s 5000 --l 2.5 --n bad", {}, {"prompt": "\\\\(x\\\\)", "seed": null}]
""",
}


def read_by_kohya(tree: str, file: Path) -> list[dict[str, Any]]:
    rig.require_rig(tree)
    folder = rig.work() / "trees" / tree
    if not any("def load_prompts" in file.read_text(encoding="utf-8") for file in (folder / "library").glob("*.py")):
        pytest.skip("this release reads prompts inside of a longer function")
    done = subprocess.run(
        [str(rig.work() / "venv" / rig.TREES[tree] / "bin" / "python"), "-c", ASK, str(file)],
        capture_output=True, text=True, cwd=folder, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{folder}:{Path(os.environ['KOHYA_RIG']) / 'shim'}"},
    )  # fmt: skip
    assert "ANSWER" in done.stdout, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.rpartition("ANSWER")[2])
    return found


@pytest.mark.parametrize("name", ["prompts.toml", "prompts.json"])
@pytest.mark.parametrize("tree", list(rig.TREES))
def test_tables_are_read_as_kohya_reads_them(tree: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    theirs, ours = read_by_kohya(tree, tmp_path / name), read(tmp_path / name).prompts
    for them, us in zip(theirs, ours, strict=True):
        assert "".join(words for words, _ in them["prompt"]) == us.text
        width, height = them.get("width", 512), them.get("height", 512)
        assert (us.width, us.height) == (max(64, width - width % 8), max(64, height - height % 8))
        assert (us.steps, us.cfg) == (them.get("sample_steps", 30), them.get("scale", 7.5))
        assert (us.seed, us.negative) == (them.get("seed"), them.get("negative_prompt") or "")


@pytest.mark.parametrize("tree", list(rig.TREES))
def test_every_text_arrives_literally(tree: str, tmp_path: Path) -> None:
    prompts = [
        Prompt(text, 1024, 768, 20, 6.5, number, "bad (hands)", "section", f"{number}.png")
        for number, text in enumerate(TEXTS)
    ]
    file = tmp_path / "prompts.txt"
    file.write_text(document(prompts), encoding="utf-8")
    found = read_by_kohya(tree, file)
    assert [one["prompt"] for one in found] == [[[text, 1.0]] for text in TEXTS]
    for number, one in enumerate(found):
        assert (one["width"], one["height"], one["sample_steps"], one["scale"], one["seed"]) == (
            1024,
            768,
            20,
            6.5,
            number,
        )
        assert set(one) == {"prompt", "width", "height", "sample_steps", "scale", "seed", "negative_prompt", "enum"}
