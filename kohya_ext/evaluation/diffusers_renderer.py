"""Images rendered by diffusers: single-file checkpoints, folders of its own, and LoRAs on a base model.

Nothing is fetched: a single file needs the configuration of its family, from a folder (`config`) or the local cache.
Noise comes from the CPU, so that a seed means the same image on every device.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kohya_ext.core import shell
from kohya_ext.core.errors import UsageError
from kohya_ext.core.shell import pip_install
from kohya_ext.evaluation.models import FOLDER, LORA, Column
from kohya_ext.evaluation.promptfile import Prompt

# Puts what diffusers needs next to the weights (3 MB) into the local cache; any huggingface_hub from 0.12 on can.
_DOWNLOAD = (
    "from huggingface_hub import snapshot_download as get; "
    "get('stabilityai/stable-diffusion-xl-base-1.0', allow_patterns=['*.json', '*.txt'])"
)
_CONFIGURATION = (
    "It needs the configuration and tokenizers of the model's family: for SDXL, download them once: "
    f"{shell.line(sys.executable, '-c', _DOWNLOAD)} - or give --config FOLDER, a diffusers folder of that family"
)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class RenderSettings:
    """base: the model that LoRAs go onto. config: a diffusers folder that describes single files; None for the cache.

    device: auto, cpu, cuda. dtype: auto is fp16 on a GPU, fp32 on a CPU. weight: of LoRAs.
    """

    base: Column | None = None
    config: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    weight: float = 1.0


class DiffusersRenderer:
    """One pipeline at a time in memory; the base stays while LoRA after LoRA goes onto it."""

    def __init__(self, settings: RenderSettings) -> None:
        self.settings = settings
        self.device = _device(settings.device)
        self.dtype = DTYPES.get(settings.dtype, torch.float32 if self.device == "cpu" else torch.float16)
        quieten_diffusers()
        self._pipeline: Any = None
        self._loaded: Column | None = None
        self._lora = False

    def load(self, column: Column) -> None:
        """See `Renderer.load`: a LoRA is put on the base model, anything else replaces the pipeline."""
        if self._lora:
            self._pipeline.unload_lora_weights()
            self._lora = False
        model = self.settings.base if column.kind == LORA else column
        if model is None:
            raise UsageError(f"{column.path} is a LoRA: name the model it was trained on with --base")
        if model != self._loaded:
            self._pipeline = self._loaded = None
            gc.collect()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            with _explained(model.path, "cannot be loaded by diffusers"):
                pipeline = self._folder(model) if model.kind == FOLDER else self._single_file(model)
                self._pipeline = pipeline.to(self.device)
            self._pipeline.set_progress_bar_config(disable=True)
            self._loaded = model
        if column.kind == LORA:
            with _explained(column.path, "cannot be applied to the base model"):
                self._pipeline.load_lora_weights(str(column.path.parent), weight_name=column.path.name)
            self._lora = True

    def draw(self, prompt: Prompt) -> Any:
        """See `Renderer.draw`: without a seed in the prompt, with a random one."""
        seed = prompt.seed if prompt.seed is not None else torch.seed() % 2**32
        more = {"cross_attention_kwargs": {"scale": self.settings.weight}} if self._lora else {}
        with torch.no_grad():
            done = self._pipeline(
                prompt=prompt.text, negative_prompt=prompt.negative or None, width=prompt.width, height=prompt.height,
                num_inference_steps=prompt.steps, guidance_scale=prompt.cfg,
                generator=torch.Generator("cpu").manual_seed(seed), **more,
            )  # fmt: skip
        return done.images[0]

    def _folder(self, model: Column) -> Any:
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(str(model.path), local_files_only=True, **_dtype(self.dtype))

    def _single_file(self, model: Column) -> Any:
        import diffusers

        kind: Any = diffusers.StableDiffusionXLPipeline if model.sdxl else diffusers.StableDiffusionPipeline
        more: dict[str, Any] = {} if model.sdxl else {"safety_checker": None, "requires_safety_checker": False}
        if self.settings.config:
            more["config"] = str(self.settings.config)
        return kind.from_single_file(str(model.path), local_files_only=True, **_dtype(self.dtype), **more)


def _dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument that sets the dtype: diffusers renamed it in 0.40 and warns of the old name since."""
    import diffusers

    major, minor = (int(part) for part in diffusers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 40) else "torch_dtype": dtype}


def _device(name: str) -> str:
    """The device of that name. Raises UsageError when there is none here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: torch has no such device here; auto takes what there is") from error
    return name


def quieten_diffusers() -> None:
    """No bars of its own next to ours, and only errors; what goes wrong is raised anyway."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    if hasattr(logging, "disable_progress_bar"):
        logging.disable_progress_bar()


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """What diffusers raises, as an error with its fix: its classes differ from version to version."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        lowered = text.lower()
        if isinstance(error, ImportError) and "peft" not in lowered:
            fix = "Run it with Kohya's Python, which has what diffusers needs"
        elif "peft" in lowered:
            fix = f"This version of diffusers needs the package peft for LoRAs: {pip_install('peft')}"
        elif any(sign in lowered for sign in ("local_files_only", "offline", "connect", "cached", "config")):
            fix = _CONFIGURATION
        else:
            fix = "Is the file complete, and of the model family that it looks like?"
        raise UsageError(f"{path} {what} ({type(error).__name__}: {text}). {fix}") from error
