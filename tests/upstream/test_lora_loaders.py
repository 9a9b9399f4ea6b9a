"""Resized and extracted LoRAs in the hands of the real loaders: ComfyUI's, and two versions of diffusers.

    COMFYUI_DIR=<ComfyUI>  COMFYUI_PATH=<folders with what it imports>  DIFFUSERS_NEW=<folders>  DIFFUSERS_OLD=<folders>

The folders go into PYTHONPATH ("" for what this interpreter has); what is not set is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kohya_ext.lora.resize import ResizeSettings, opened, run
from tests.lora import models
from tests.lora.formats import accepted

pytestmark = pytest.mark.upstream

HERE = Path(__file__).parent
WAYS: dict[str, dict[str, object]] = {
    "rank": {"rank": 4},
    "dynamic": {"rank": 6, "dynamic": "sv_fro", "parameter": 0.9},
}
LOADERS = {
    "comfyui": ("comfy:", "lora_in_comfyui.py"),
    "diffusers new": ("diffusers:", "lora_in_diffusers.py"),
    "diffusers old": ("diffusers:", "lora_in_diffusers.py"),
}
Loaded = list[dict[str, object]]


def load(loader: str, jobs: list[tuple[str, Path]], folder: Path) -> Loaded:
    """What `loader` makes of the files, in a process of its own."""
    variables = {"comfyui": "COMFYUI_DIR", "diffusers new": "DIFFUSERS_NEW", "diffusers old": "DIFFUSERS_OLD"}
    path = os.environ.get(variables[loader])
    if path is None:
        pytest.skip(f"needs {variables[loader]}")
    folders = [path, os.environ.get("COMFYUI_PATH", "")] if loader == "comfyui" else [path]
    (folder / "jobs.json").write_text(json.dumps([[family, str(file)] for family, file in jobs]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    done = subprocess.run(
        [sys.executable, str(HERE / LOADERS[loader][1]), str(folder / "jobs.json"), str(folder / "results.pt")],
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    found: Loaded = torch.load(str(folder / "results.pt"), weights_only=True)
    return found


@pytest.fixture(scope="module", params=LOADERS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict, dict]]:  # type: ignore[type-arg]
    """(input, output) by format and way, all in one process of the loader."""
    prefix, folder = LOADERS[request.param][0], tmp_path_factory.mktemp("loaders")
    jobs: list[tuple[str, Path]] = []
    names = []
    for made in accepted():
        for family in (loader.removeprefix(prefix) for loader in made.loaders if loader.startswith(prefix)):
            for way, settings in WAYS.items():
                source = made.save(folder / made.name)
                out = folder / f"{made.name}-{way}.safetensors"
                chosen = ResizeSettings(**settings)  # type: ignore[arg-type]
                run(opened(source, chosen), out, chosen)
                jobs += [(family, source), (family, out)]
                names.append(f"{made.name} {way}")
    results = load(request.param, jobs, folder)
    return {name: (results[2 * i], results[2 * i + 1]) for i, name in enumerate(names)}


def test_every_key_is_loaded_at_its_scale(loaded: dict[str, tuple[dict, dict]]) -> None:  # type: ignore[type-arg]
    wrong = []
    for name, (before, after) in loaded.items():
        if before["unloaded"] or not before["deltas"]:
            wrong.append(f"{name}: the input itself is not loaded: {str(before['unloaded'])[:300]}")
            continue
        if after["unloaded"] or after["deltas"].keys() != before["deltas"].keys():
            wrong.append(f"{name}: not loaded: {str(after['unloaded'])[:300]}")
            continue
        wrong += [f"{name}: {text}" for target in before["deltas"] if (text := judge(before, after, target))]
    print(len(loaded), "files", sum(len(after["deltas"]) for _, after in loaded.values()), "modules")
    assert not wrong, "\n".join(wrong[:40])


def judge(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]], target: str) -> str:
    """Whether the loader's product is the best one of its rank, at the same scale; "" where it is."""
    exact, found = (each["deltas"][target].double() for each in (before, after))
    if exact.ndim < 2:  # a bias or a norm, carried over
        return "" if torch.equal(exact, found) else f"{target}: changed"
    exact, found = exact.flatten(1), found.flatten(1)
    if exact.shape != found.shape or found.shape[0] == 0:
        return f"{target}: {exact.shape} {found.shape}"
    if torch.equal(exact, found):
        return ""
    rank = int(torch.linalg.matrix_rank(found, rtol=2e-3))
    best = models.truncated(exact, rank)
    least, error = float((best - exact).norm()), float((found - exact).norm())
    if error > 1.001 * least + 1e-2 * float(exact.norm()):
        return f"{target}: error {error:.4g}, possible {least:.4g} at rank {rank}"
    scale = float((best * found).sum() / best.square().sum())
    return "" if abs(scale - 1) < 5e-3 else f"{target}: scale {scale:.4f}"
