"""Runs the real training scripts on a CPU with tiny random models, through a rig that the caller names.

KOHYA_RIG is a folder with `train.sh KIND NAME FLAGS...` (KIND: sdxl, net SCRIPT MODEL, ft), RIG_WORK the folder it has
prepared: `trees/NAME`, `assets/`, `venv/NAME`, and where outputs go, `out/NAME`. `env.sh` sets what its runs need.
Neither belongs to this repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

LONGEST = 3600.0  # seconds of a run, on a busy machine

BUNDLE = Path(__file__).resolve().parents[2]

# tree of the rig -> its environment
TREES = {"sd-scripts-main": "main", "sd-scripts-0.11.1": "main", "kohya_ss-v22": "v22"}
# Trees that only some tests use. v06 is v22's environment with accelerate 0.15.0 and diffusers 0.10.2 before it.
FURTHER_TREES = {"sd-scripts-0.8.7": "main", "sd-scripts-0.6.6": "v06"}


def work() -> Path:
    return Path(os.environ["RIG_WORK"])


def require_rig(tree: str) -> None:
    missing = [name for name in ("KOHYA_RIG", "RIG_WORK") if not os.environ.get(name)]
    if missing:
        pytest.skip(f"needs the training rig: set {', '.join(missing)}")
    if not (work() / "trees" / tree).is_dir():
        pytest.skip(f"the rig has no tree {tree}")
    if not (work() / "venv" / environment(tree)).is_dir():
        pytest.skip(f"the rig has no environment {environment(tree)}")


def environment(tree: str) -> str:
    """The name of the environment that runs `tree`."""
    return {**TREES, **FURTHER_TREES}[tree]


@dataclass(frozen=True)
class Run:
    """One finished training run: its folder and what it printed."""

    name: str
    folder: Path
    output: str
    returncode: int

    def tensors(self, suffix: str = "") -> dict[str, torch.Tensor]:
        return load_file(str(self.folder / f"{self.name}{suffix}.safetensors"))

    def metadata(self, suffix: str = "") -> dict[str, str]:
        with safe_open(str(self.folder / f"{self.name}{suffix}.safetensors"), "pt") as file:
            return file.metadata() or {}

    def at_steps(self, steps: int, suffix: str = "") -> list[dict[str, torch.Tensor]]:
        """The weights saved after each of `steps` steps."""
        return [self.tensors(f"{suffix}-step{step:08d}") for step in range(1, steps + 1)]


def train(
    tree: Path,
    environment: str,
    kind: list[str],
    name: str,
    *flags: str,
    launch: str = "",
    keep: bool = False,
    site: Path = BUNDLE,
) -> Run:
    """Run `train.sh` in `tree`; the output folder starts empty unless `keep`. site: the folder that has our package."""
    folder = work() / "out" / name
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    variables = {**os.environ, "TREE": str(tree), "VENV": environment, "RIG_EXTRA_PATH": str(site), "LAUNCH": launch}
    script = Path(os.environ["KOHYA_RIG"]) / "train.sh"
    done = subprocess.run(
        [str(script), kind[0], name, *kind[1:], *flags],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST,
    )  # fmt: skip
    return Run(name, folder, done.stdout, done.returncode)


def train_family(tree: Path, environment: str, name: str, script: str, *flags: str) -> Run:
    """Run a script of a newer family (FLUX, SD3, Lumina, Anima) with the rig's tiny models."""
    if not (work() / "assets" / "families").is_dir():
        pytest.skip("the rig has no models of the newer families")
    folder = work() / "out" / name
    variables = {**os.environ, "TREE": str(tree), "VENV": environment, "RIG_EXTRA_PATH": str(BUNDLE)}
    done = subprocess.run(
        [str(Path(os.environ["KOHYA_RIG"]) / "families" / "run.sh"), name, script, *flags],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST,
    )  # fmt: skip
    shutil.rmtree(work() / "assets" / f"data-{name}", ignore_errors=True)
    return Run(name, folder, done.stdout, done.returncode)


def python(tree: Path, environment: str, shim: str = "") -> list[str]:
    """The words that start Python in the rig's surroundings, in `tree`. shim: a folder of the rig to import first."""
    line = (
        'rig=$1 tree=$2 shim=$3 python=$4; shift 4; . "$rig/env.sh"; '
        'export PYTHONPATH="${shim:+$rig/$shim:}$PYTHONPATH"; cd "$tree"; exec "$python" "$@"'
    )
    binary = work() / "venv" / environment / "bin" / "python"
    return ["bash", "-c", line, "bash", os.environ["KOHYA_RIG"], str(tree), shim, str(binary)]


def run_script(
    tree: Path,
    environment: str,
    name: str,
    script: str,
    *flags: str,
    launch: str = "",
    keep: bool = False,
    shim: str = "",
) -> Run:
    """Run any training script of `tree` in the rig's surroundings; the output folder starts empty unless `keep`."""
    folder = work() / "out" / name
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    words = [*launch.split(), script, f"--output_dir={folder}", f"--output_name={name}", *flags]
    done = subprocess.run(
        [*python(tree, environment, shim), *words],
        env={**os.environ, "RIG_EXTRA_PATH": str(BUNDLE)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST,
    )  # fmt: skip
    return Run(name, folder, done.stdout, done.returncode)


def copy_tree(tree: str, folder: Path) -> Path:
    shutil.copytree(work() / "trees" / tree, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
