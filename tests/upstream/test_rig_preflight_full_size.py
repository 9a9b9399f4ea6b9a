"""Preflights of models of full size, held to real runs: SD 1.5, and SDXL with half of its transformer blocks.

Minutes each, and 18 GB of main memory.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.upstream import rig
from tests.upstream.rig_bench import MAIN
from tests.upstream.rig_traced import MODEL, SIZE, counted, surroundings, traced
from tests.upstream.test_rig_preflight import ADAFACTOR, ADAMW, FULL_BF16, check_parts, peaks_of

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

CLOSE = 0.03  # of the bytes
NEEDED = 18 * 10**9  # bytes of main memory
TWO_STEPS = ("--max_train_steps=2", "--cache_latents")
FUSED = (*ADAFACTOR[:2], *FULL_BF16, "--fused_backward_pass", "--max_grad_norm=0", *ADAFACTOR[3:])
LORA = ("--network_module=networks.lora", "--network_dim=4", "--network_train_unet_only")
SETTINGS = {
    "sd15 full": ("sd15", "train_db.py", (*ADAMW, "--gradient_checkpointing", "--stop_text_encoder_training=-1")),
    "sd15 LoRA": ("sd15", "train_network.py", (*ADAMW, *LORA)),
    "half sdxl fused": ("sdxl", "sdxl_train.py", (*FUSED, "--gradient_checkpointing", "--no_half_vae")),
    "half sdxl LoRA": ("sdxl", "sdxl_train_network.py", (*ADAMW, *LORA, "--no_half_vae")),
}
# Loaded by every Python with this folder first on its path: SDXL's U-Net has half of its transformer blocks.
HALVED = """
import importlib.abc, importlib.machinery, sys


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "library.sdxl_original_unet":
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = found.loader.exec_module

        def executed(module):
            execute(module)
            make = module.Transformer2DModel.__init__

            def init(self, *args, num_transformer_layers=1, **named):
                make(self, *args, num_transformer_layers=max(1, num_transformer_layers // 2), **named)

            module.Transformer2DModel.__init__ = init

        found.loader.exec_module = executed
        return found


sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that makes Pythons halve SDXL, and holds random checkpoints."""
    rig.require_rig(MAIN)
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < NEEDED:
        pytest.skip(f"needs {NEEDED // 10**9} GB of main memory")
    folder = tmp_path_factory.mktemp("full")
    (folder / "sitecustomize.py").write_text(HALVED, encoding="utf-8")
    return folder


def checkpoint(folder: Path, kind: str) -> Path:
    file = folder / f"{kind}.safetensors"
    if not file.is_file():
        rig_folder = Path(os.environ["KOHYA_RIG"])
        python = rig.work() / "venv" / rig.environment(MAIN) / "bin" / "python"
        subprocess.run(
            [str(python), str(rig_folder / "make_full.py"), str(file), kind], cwd=rig.work() / "trees" / MAIN,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(rig_folder / "shim")))}, check=True,
        )  # fmt: skip
    return file


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_real_run_takes(full_size: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, script, more = SETTINGS[name]
    python_path = os.pathsep.join((str(full_size), str(Path(os.environ["KOHYA_RIG"]) / "shim")))
    variables = {**surroundings(script), "RIG_TINY": "0", "OMP_NUM_THREADS": "2", "PYTHONPATH": python_path}
    monkeypatch.setattr("tests.upstream.rig_traced.surroundings", lambda _: dict(variables))
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    tokenizers = f"--tokenizer_cache_dir={rig.work() / 'assets' / 'tokenizers'}"
    flags = (f"{MODEL}={checkpoint(full_size, kind)}", tokenizers, *SIZE, "--caption_extension=.txt", *more, *TWO_STEPS)
    tree, environment = rig.work() / "trees" / MAIN, rig.environment(MAIN)
    report = traced(tree, environment, script, flags, tmp_path)
    assert report["error"] is None, (report["error"], report["said"][-3000:])
    real = counted(tree, environment, script, flags, tmp_path)
    found = {phase: (size, real["peaks"][phase]) for phase, size in peaks_of(report).items() if phase in real["peaks"]}
    print({phase: (ours, theirs, f"{ours / theirs - 1:+.2%}") for phase, (ours, theirs) in found.items()})
    assert set(found) >= {"forward", "backward"}
    for phase, (ours, theirs) in found.items():
        assert ours == pytest.approx(theirs, rel=CLOSE), phase
    check_parts(report, real)
