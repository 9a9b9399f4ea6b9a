"""What a LoRA says about itself: sd-scripts' `ss_*`, the modelspec fields, and which files it comes from, by hash."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.about import VERSION
from kohya_ext.lora.assemble import FinishedModule
from kohya_ext.lora.checkpoint import Checkpoint
from kohya_ext.lora.encoders import Decision
from kohya_ext.lora.layout import Architecture

BLOCK = 1 << 22
_OLD_START, _OLD_LENGTH, _OLD_DIGITS = 0x100000, 0x10000, 8  # the short hash that web UIs once told models by
PREFIX = "kohya_ext_lora_"
_MODELSPEC = {
    Architecture.SD1: ("stable-diffusion-v1/lora", "diffusers", "512x512"),
    Architecture.SD2: ("stable-diffusion-v2-512/lora", "diffusers", "512x512"),
    Architecture.SDXL: (
        "stable-diffusion-xl-v1-base/lora",
        "https://github.com/Stability-AI/generative-models",
        "1024x1024",
    ),
    Architecture.FLUX: ("flux-1-dev/lora", "https://github.com/black-forest-labs/flux", "1024x1024"),
}


@dataclass(frozen=True)
class FileHash:
    """sha256 of the whole file, and the old short hash of web UIs."""

    sha256: str
    short: str


class Hashing:
    """The hashes of `paths`, taken by a thread that reads each once, from front to end, while they are worked on.

    It runs ahead of the extraction, which then finds the files' pages in memory. Leave the context early and the thread
    ends early.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._found: dict[Path, FileHash] = {}
        self._error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(tuple(dict.fromkeys(paths)),), daemon=True)

    def __enter__(self) -> Hashing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def result(self) -> dict[Path, FileHash]:
        """Wait for all of them. Raises OSError when a file could not be read to its end."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._found

    def _run(self, paths: tuple[Path, ...]) -> None:
        try:
            for path in paths:
                digest = hashlib.sha256()
                with path.open("rb", buffering=0) as file:
                    file.seek(_OLD_START)
                    short = hashlib.sha256(file.read(_OLD_LENGTH)).hexdigest()[:_OLD_DIGITS]
                    file.seek(0)
                    while block := file.read(BLOCK):
                        if self._stop.is_set():
                            return
                        digest.update(block)
                self._found[path] = FileHash(digest.hexdigest(), short)
        except OSError as error:
            self._error = error


def of_extraction(
    path: Path,
    base: Checkpoint,
    tuned: Checkpoint,
    hashes: Mapping[Path, FileHash],
    kept: Sequence[FinishedModule],
    decisions: Sequence[Decision],
) -> dict[str, str]:
    """Metadata of a LoRA extracted from `base` and `tuned` into `path`."""
    architecture, implementation, resolution = _MODELSPEC[base.architecture]
    flux = base.architecture is Architecture.FLUX
    found = {
        "ss_v2": str(base.architecture is Architecture.SD2),
        "ss_base_model_version": base.architecture.value,
        "ss_network_module": "networks.lora_flux" if flux else "networks.lora",
        **network(kept),
        "ss_output_name": path.stem,
        "ss_sd_model_name": base.path.name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": implementation,
        "modelspec.title": path.stem,
        "modelspec.resolution": resolution,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        PREFIX + "version": VERSION,
        PREFIX + "base_sha256": _hashes(base, hashes),
        PREFIX + "tuned": tuned.path.name,
        PREFIX + "tuned_sha256": _hashes(tuned, hashes),
        PREFIX + "text_encoders": json.dumps({decision.group: decision.reason for decision in decisions}),
        PREFIX + "errors": errors(kept),
    }
    if not flux:
        found["modelspec.prediction_type"] = _prediction(tuned)
    if "v_pred" in tuned.marks:
        found["ss_v_parameterization"] = "True"
    if "ztsnr" in tuned.marks:
        found["ss_zero_terminal_snr"] = "True"
    if len(base.files) == 1:
        found["ss_sd_model_hash"] = hashes[base.files[0]].short
        found["ss_new_sd_model_hash"] = hashes[base.files[0]].sha256
    return found


def _prediction(tuned: Checkpoint) -> str:
    """What the tuned model predicts, by its own word; epsilon where it says nothing."""
    stated = {source.metadata.get("modelspec.prediction_type", "") for source in tuned.sources}
    return "v" if "v_pred" in tuned.marks or "v" in stated else "epsilon"


def network(kept: Sequence[FinishedModule]) -> dict[str, str]:
    """Rank and alpha, of linear layers and of 3x3 convolutions; "Dynamic" where the modules differ."""
    plain = [item for item in kept if not item.module.is_wide_kernel]
    wide = [item for item in kept if item.module.is_wide_kernel]
    arguments = {}
    if wide:
        arguments = {"conv_dim": _one([item.width for item in wide]), "conv_alpha": _alpha(wide)}
    return {
        "ss_network_dim": _one([item.width for item in plain or wide]),
        "ss_network_alpha": _alpha(plain or wide),
        "ss_network_args": json.dumps(arguments),
    }


def errors(kept: Sequence[FinishedModule]) -> str:
    """{module: [rank, part of the norm that is missing]}."""
    return json.dumps({item.module.name: [item.rank, float(f"{item.error:.4g}")] for item in kept})


def _one(ranks: Sequence[int]) -> str:
    """The rank; a module whose matrix is smaller than it does not make a file dynamic."""
    counts = Counter(ranks)
    return str(max(counts)) if len(counts) == 1 or counts[max(counts)] * 2 > len(ranks) else "Dynamic"


def _alpha(kept: Sequence[FinishedModule]) -> str:
    rank = _one([item.width for item in kept])
    if rank == "Dynamic":
        return rank
    alphas = {item.alpha for item in kept if str(item.width) == rank}
    return str(alphas.pop()) if len(alphas) == 1 else "Dynamic"


def _hashes(checkpoint: Checkpoint, hashes: Mapping[Path, FileHash]) -> str:
    if len(checkpoint.files) == 1:
        return hashes[checkpoint.files[0]].sha256
    root = checkpoint.path
    return json.dumps({file.relative_to(root).as_posix(): hashes[file].sha256 for file in checkpoint.files})
