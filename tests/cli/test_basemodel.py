"""The command with the real huggingface_hub against a hub of our own, in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kohya_ext
from kohya_ext.basemodel.remote import SDXL
from kohya_ext.core.errors import CONFLICT, DONE, WRONG_USAGE
from tests.basemodel.hub import NAME, REPOSITORY, Hub, serving

pytest.importorskip("huggingface_hub")

CONTENT = random.Random(2).randbytes(40_000)
ROOT = Path(kohya_ext.__file__).parents[1]


def command(hub: Hub, home: Path, *words: object, **environment: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, document, standard error) of `kohya-ext base-model ... --json`."""
    passed = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [os.environ.get("HUB_PYTHON", sys.executable), "-m", "kohya_ext", "base-model", "--json", *map(str, words)],
        env={
            **passed, "PYTHONPATH": str(ROOT), "HOME": str(home), "HF_ENDPOINT": hub.address,
            "HF_HOME": str(home / "hf"), "no_proxy": "127.0.0.1,localhost", **environment,
        },
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_the_whole_way(tmp_path: Path) -> None:
    target = tmp_path / "models" / NAME
    with serving(Hub(CONTENT, ["breaks off", "says less", "corrupt", "503", "breaks off"], watched=target)) as hub:
        words = ("--repo", REPOSITORY, "--file", NAME, "--to", target.parent)
        code, document, _ = command(hub, tmp_path, *words, "--dry-run")
        assert code == DONE and document["bytes"] == len(CONTENT) and not target.parent.exists()
        code, document, errors = command(hub, tmp_path, *words, HF_TOKEN="hf_secret")
        assert code == DONE and document["sha256"] == hub.sha256, errors
        assert target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == [NAME]
        assert not hub.seen_early and hub.asked[1][0] == 20_000
        assert hub.heads[-1] == "Bearer hf_secret" and hub.heads[0] == ""
        assert {authorization for _, authorization in hub.asked} == {""}, "the token stays with the hub"
        downloads = len(hub.asked)
        code, document, _ = command(hub, tmp_path, *words)
        assert code == DONE and document["reused"] and len(hub.asked) == downloads


def test_errors_are_told(tmp_path: Path) -> None:
    words = ("--repo", REPOSITORY, "--file", NAME, "--to", tmp_path / "models")
    with serving(Hub(CONTENT)) as hub:
        code, document, _ = command(hub, tmp_path, *words, HF_HUB_OFFLINE="1")
        assert code == CONFLICT and "HF_HUB_OFFLINE is set" in document["error"]
        code, document, _ = command(
            hub, tmp_path, "--repo", REPOSITORY, "--file", "other.bin", "--to", tmp_path / "models"
        )
        assert code == WRONG_USAGE and "has no other.bin" in document["error"]
        code, document, _ = command(hub, tmp_path, *words, "--sha256", "f" * 64)
        assert code == CONFLICT and "offers another file" in document["error"]
        hub.status = 401
        code, document, _ = command(hub, tmp_path, *words)
        assert code == CONFLICT and "set HF_TOKEN" in document["error"]
    code, document, _ = command(hub, tmp_path, *words)  # its server has gone
    assert code == CONFLICT and "cannot be reached" in document["error"] and "by hand" in document["error"]
    assert not (tmp_path / "models").exists()


def test_a_mirror_that_announces_another_sdxl(tmp_path: Path) -> None:
    with serving(Hub(CONTENT)) as hub:
        code, document, _ = command(hub, tmp_path, "--to", tmp_path)
    assert code == WRONG_USAGE and SDXL.name in document["error"]  # our hub has only the other file


def test_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kohya_ext.cli.main import main
    from tests.tensors.files import write

    base, vae, out = (tmp_path / f"{name}.safetensors" for name in ("base", "vae", "out"))
    write(base, {"a": (3,), "first_stage_model.quant_conv.bias": (2,)})
    write(vae, {"quant_conv.bias": (2,)}, dtype="F32")
    words = ["base-model", "build", str(base), "--vae", str(vae), "--out", str(out)]
    assert main([*words, "--dry-run"]) == DONE and not out.exists()
    assert main(words) == DONE and "1 weights from" in capsys.readouterr().out
    assert main(words) == CONFLICT
    assert main([*words[:-1], str(base), "--overwrite"]) == WRONG_USAGE
    assert main([*words, "--overwrite", "--json"]) == DONE
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{\n") :])["weights"] == 1
