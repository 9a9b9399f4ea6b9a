"""Real trees, patched once each, real runs on them, and the average that a run must have, by definition in float64."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from tests.upstream import rig
from tests.upstream.test_every_release import kohya_ext

MAIN, NEWEST, OLD = rig.TREES
MIDDLE, OLDEST = rig.FURTHER_TREES
STEPS = 4
DECAY = 0.9
LAUNCH = Path(__file__).with_name("rig_launch.py")
KINDS = {
    "full": (["sdxl"], ("--learning_rate=1", "--train_text_encoder")),
    "lora": (
        ["net", "sdxl_train_network.py", "tiny_sdxl.safetensors"],
        ("--learning_rate=1", "--network_train_unet_only"),
    ),
    "sd15_lora": (
        ["net", "train_network.py", "tiny_sd15.safetensors"],
        ("--learning_rate=1", "--network_train_unet_only"),
    ),
    "fine_tune": (["ft"], ("--learning_rate=1", "--train_text_encoder")),
}
COMMON = (f"--max_train_steps={STEPS}", "--mixed_precision=no", "--save_precision=float")
ADACOOR = ("--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8")
EMA = ("--enable_ema", f"--ema_decay={DECAY}")
EVERY_STEP = ("--save_every_n_steps=1",)
TWO_PROCESSES = "-m torch.distributed.run --nproc_per_node 2 --master_port {port}"

Weights = dict[str, torch.Tensor]


class Bench:
    """Patched copies of the rig's trees, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trees: dict[str, Path] = {}
        self._starts: dict[tuple[str, str], Weights] = {}

    def tree(self, name: str) -> Path:
        rig.require_rig(name)
        if name not in self._trees:
            tree = rig.copy_tree(name, self.folder / name)
            done = kohya_ext("install", str(tree), "--no-package", "--yes")
            assert done.returncode == 0, done.stdout + done.stderr
            self._trees[name] = tree
        return self._trees[name]

    def train(
        self, tree: str, kind: str, name: str, *flags: str, launch: str = "", fails: bool = False, keep: bool = False
    ) -> rig.Run:
        """One run of STEPS steps on the patched tree; later flags win."""
        train_sh, usual = KINDS[kind]
        label = f"{tree}-{kind}-{name}"
        words = (*COMMON, *usual, *ADACOOR, *flags)
        run = rig.train(self.tree(tree), rig.environment(tree), train_sh, label, *words, launch=launch, keep=keep)
        assert fails or run.returncode == 0, run.output[-4000:]
        return run

    def train_all(
        self, tree: str, kind: str, name: str, variants: Mapping[str, Sequence[str]], *flags: str,
        what: str = "nothing", launch: str = "",
    ) -> dict[str, rig.Run]:  # fmt: skip
        """A run with each of the variants' further flags, one after the other in one process."""
        os.environ["RIG_VARIANTS"] = json.dumps({key: list(more) for key, more in variants.items()})
        try:
            run = self.train(tree, kind, name, *flags, launch=f"{launch} {LAUNCH} {what}")
        finally:
            del os.environ["RIG_VARIANTS"]
        return {key: rig.Run(f"{run.name}-{key}", run.folder, run.output, run.returncode) for key in variants}

    def start(self, tree: str, kind: str) -> Weights:
        """The weights that runs of this kind begin with: a learning rate of next to nothing leaves them as they are."""
        if (tree, kind) not in self._starts:
            still = ("--optimizer_type=SGD", "--learning_rate=1e-30", "--max_train_steps=1")
            run = self.train(tree, kind, "start", "--optimizer_args", "momentum=0", *still)
            self._starts[tree, kind] = run.tensors()
            remove(run)
        return self._starts[tree, kind]


def remove(run: rig.Run) -> None:
    """The rig's models are small, their number is not."""
    shutil.rmtree(run.folder, ignore_errors=True)


# ---------------------------------------------------------------------- the definition, independent of the package


def constant(step: int, of: int) -> float:
    return 1 - DECAY


def debiased(step: int, of: int) -> float:
    return (1 - DECAY) / (1 - DECAY**step)


def warmup(step: int, of: int) -> float:
    return 1 - min(DECAY, (1 + step) / (10 + step))


def exp(step: int, of: int) -> float:
    """--ema_exp_beta 15"""
    return 1 - DECAY * (1 - math.exp(-15 * step / of))


def power(step: int, of: int) -> float:
    """sigma_rel 0.1: the exponent is the real root of the published cubic, about 6.94."""
    inverse = 0.1**-2
    gamma = max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real)
    return float(1 - (1 - 1 / step) ** (gamma + 1))


SCHEDULES: dict[str, tuple[Callable[[int, int], float], tuple[str, ...]]] = {
    "constant": (constant, ("--ema_schedule=constant",)),
    "debiased": (debiased, ()),
    "warmup": (warmup, ("--ema_schedule=warmup",)),
    "exp": (exp, ("--ema_exp_beta=15",)),
    "power": (power, ("--ema_schedule=power", "--ema_sigma_rel=0.1")),
}


def average(start: Weights, raw: Sequence[Weights], weight: Callable[[int, int], float], of: int = STEPS) -> Weights:
    """s_0 = start, s_t = s_(t-1) + w_t (p_t - s_(t-1)) over `of` planned steps, in float64."""
    shadow = {key: value.double() for key, value in start.items()}
    for step, weights in enumerate(raw, 1):
        w = weight(step, of)
        shadow = {key: value + w * (weights[key].double() - value) for key, value in shadow.items()}
    return shadow


def assert_same_to_rounding(ours: Weights, exact: Weights, slack: float = 1.0) -> None:
    """fp32 rounding: a unit in the last place of the largest value for each of the updates, in every tensor."""
    assert ours.keys() == exact.keys()
    for key, value in exact.items():
        bound = slack * STEPS * torch.finfo(torch.float32).eps * max(1e-30, float(value.abs().max()))
        error = float((ours[key].double() - value).abs().max())
        assert error <= bound, f"{key}: {error} > {bound}"


def different(a: Weights, b: Weights) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def assert_identical(a: Weights, b: Weights) -> None:
    wrong = different(a, b)
    assert not wrong, f"{len(wrong)} of {len(a)} tensors differ"
