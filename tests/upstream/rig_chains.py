"""Real runs that are interrupted and resumed exactly, again and again, next to the run that nobody has interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from kohya_ext.report import events
from kohya_ext.resume.states import SavedState
from kohya_ext.spec.outputs import STATE_SUFFIX
from tests.upstream import rig, rig_forks
from tests.upstream.rig_bench import EMA, MAIN, NEWEST, OLD, Bench

IMAGES = 6
EXACT = "--kohya_ext_exact_resume"
ON_SIGNAL = "--kohya_ext_save_on_signal"
SAVING = ("--save_every_n_epochs=1", "--save_state", *EMA)
SMALL = ("--resolution=128,128", "--min_bucket_reso=64", "--max_bucket_reso=256")
SHUFFLED = ("--shuffle_caption", "--caption_dropout_rate=0.2")
FAMILIES = "families/shim"

# script -> the bench's kind of run; the others are run as families
KINDS = {"sdxl_train": "full", "sdxl_train_network": "lora", "train_network": "sd15_lora", "fine_tune": "fine_tune"}
FLUX = "flux_train_network"
CELLS = [(tree, script) for tree in (MAIN, NEWEST, OLD) for script in (*KINDS, FLUX) if (tree, script) != (OLD, FLUX)]


def adacoor(*settings: str) -> tuple[str, ...]:
    return ("--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8", *settings)


def of_matrix(tree: str, script: str, workers: int) -> Job:
    """Without workers AdaCoor keeps 8 bits; with two it rounds at random, weights in bf16 too where there are any."""
    half = workers > 0 and script != "fine_tune"
    dtype = ("--full_bf16", "--mixed_precision=bf16") if half else ()
    optimizer = adacoor("stochastic_state=True") if workers else adacoor("state_bits=8")
    simple = () if tree == OLD else ("--console_log_simple",)
    flags = (*SHUFFLED, *SMALL, *simple, f"--max_data_loader_n_workers={workers}", *dtype, *optimizer)
    return Job(tree, script, f"workers{workers}", flags)


@dataclass(frozen=True)
class Job:
    """A script of a tree with its settings; `accumulation` batches are a step.

    whats: what rig_launch changes about its surroundings.
    """

    tree: str
    script: str
    label: str
    flags: tuple[str, ...]
    accumulation: int = 2
    whats: str = "killed"

    @property
    def epoch(self) -> int:
        """The steps of an epoch."""
        return IMAGES // self.accumulation

    @property
    def settings(self) -> tuple[str, ...]:
        return (EXACT, *SAVING, f"--gradient_accumulation_steps={self.accumulation}", *self.flags)


@dataclass
class Chains:
    """Runs of patched trees, started by processes that have imported the libraries already."""

    folder: Path
    bench: Bench = field(init=False)
    _servers: dict[tuple[str, str], str] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.bench = Bench(self.folder)

    def close(self) -> None:
        self._stack.close()

    def run(self, job: Job, name: str, *flags: str, after: SavedState | None = None, end: str = "") -> rig.Run:
        """Start a run, or continue it from `after`. end: as rig_launch's RIG_END."""
        place = None if after is None else after.record.position
        seen = 0 if place is None else place.epoch * IMAGES + place.batches
        os.environ.update(RIG_END=end, RIG_SEEN=str(seen), RIG_ANIMA="1")
        name, launch = f"{name}-{job.label}", f"{self._launcher(job)} {job.whats}"
        words = [*job.settings, *flags, *([] if after is None else [f"--resume={after.folder}"])]
        if job.script in KINDS:
            return self.bench.train(
                job.tree, KINDS[job.script], name, *words, launch=launch, fails=True, keep=after is not None
            )
        return rig.run_script(
            self.bench.tree(job.tree), rig.environment(job.tree), f"{job.tree}-{job.script}-{name}",
            f"{job.script}.py", *family_flags(job.script), *words,
            launch=launch, keep=after is not None, shim=FAMILIES,
        )  # fmt: skip

    def _launcher(self, job: Job) -> str:
        shim = "" if job.script in KINDS else FAMILIES
        key = rig.environment(job.tree), shim
        if key not in self._servers:
            words = rig.python(self.bench.tree(job.tree), key[0], shim)
            path = self.folder / f"forks{len(self._servers)}"
            self._servers[key] = self._stack.enter_context(rig_forks.forking(words, path))
        return self._servers[key]


# family -> its files in the rig by flag, and what else its scripts need
_FAMILIES = {
    "flux": (
        {"pretrained_model_name_or_path": "tiny_flux", "clip_l": "tiny_flux_clip_l", "t5xxl": "tiny_t5",
         "ae": "tiny_ae"},
        ("--timestep_sampling=shift", "--model_prediction_type=raw", "--guidance_scale=1.0",
         "--t5xxl_max_token_length=32"),
    ),
    "sd3": (
        {"pretrained_model_name_or_path": "tiny_sd3", "clip_l": "tiny_sd3_clip_l", "clip_g": "tiny_sd3_clip_g",
         "t5xxl": "tiny_t5"},
        ("--t5xxl_max_token_length=32",),
    ),
    "lumina": (
        {"pretrained_model_name_or_path": "tiny_lumina", "gemma2": "tiny_gemma2", "ae": "tiny_ae"},
        ("--gemma2_max_token_length=32",),
    ),
    "anima": (
        {"pretrained_model_name_or_path": "tiny_anima", "vae": "tiny_qwen_vae", "qwen3": "tiny_qwen3"},
        ("--attn_mode=torch",),
    ),
}  # fmt: skip


def family_flags(script: str) -> Iterator[str]:
    """The rig's tiny models and data for a script of a newer family."""
    assets, family = rig.work() / "assets", script.partition("_")[0]
    models, own = _FAMILIES[family]
    for flag, name in models.items():
        path = assets / "families" / name
        yield f"--{flag}={path if path.is_dir() else path.with_suffix('.safetensors')}"
    yield from own
    yield from (
        f"--tokenizer_cache_dir={assets}/tokenizers", f"--train_data_dir={assets}/data", "--caption_extension=.txt",
        "--resolution=256,256", "--save_model_as=safetensors", "--train_batch_size=1", "--seed=1", "--sdpa",
        "--mixed_precision=no", "--save_precision=float", "--cache_latents", "--learning_rate=1",
    )  # fmt: skip
    if script.endswith("network"):
        yield from (f"--network_module=networks.lora_{family}", "--network_dim=4", "--network_train_unet_only")


# ---------------------------------------------------------------------- what two runs have in common


def digests(run: rig.Run) -> dict[str, str]:
    """What follows the run's name in a file's -> the sha256 of all its tensors, with their names, types and sizes."""
    found = {}
    for path in sorted(run.folder.glob("*.safetensors")):
        digest = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else b"%r" % tensor)
        found[path.stem.removeprefix(run.name)] = digest.hexdigest()
    return found


def assert_same_states(one: rig.Run, other: rig.Run) -> None:
    """The state at the end: weights, optimizer, EMA, scheduler and random numbers."""
    ours, theirs = (run.folder / f"{run.name}{STATE_SUFFIX}" for run in (one, other))
    names = [path.name for path in sorted(ours.iterdir()) if path.suffix in (".safetensors", ".bin", ".pkl", ".pt")]
    assert names
    for name in names:
        if name.endswith(".safetensors"):
            assert_same(load_file(ours / name), load_file(theirs / name), name)
        else:
            first, second = (torch.load(folder / name, weights_only=False) for folder in (ours, theirs))
            assert_same(first, second, name)


def assert_same(one: Any, other: Any, where: str) -> None:
    """Nested values, the same to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where} {key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{where} {number}")
    else:
        assert repr(one) == repr(other), where


def logged(folder: Path) -> set[tuple[str, int, float]]:
    """All (tag, step, value) that were logged; scripts log the batches of a step under one number."""
    files = folder.rglob("events.out.tfevents.*")
    return {value for file in files for value in events._values(file.read_bytes())}
