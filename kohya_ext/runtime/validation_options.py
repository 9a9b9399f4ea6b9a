"""What the flags of validation say, and what is refused before a model is loaded."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import CONFLICT
from kohya_ext.runtime import legacy
from kohya_ext.runtime.run import run, say, stop
from kohya_ext.spec.flags import (
    FEATURES,
    NO_VALIDATION,
    SAVE_BEST,
    VALIDATE,
    VALIDATE_EVERY,
    VALIDATION,
    VALIDATION_SEED,
    VALIDATION_SPLIT,
    VALIDATION_TIMESTEPS,
    faults,
    without_validation,
)
from kohya_ext.spec.hooks import NOT_VALIDATED


@dataclass(frozen=True)
class ValidationOptions:
    """The flags in their final types. folder: of held-out images, None with a split; share: of a split, else 0."""

    folder: str | None
    share: float
    every: int
    timesteps: int
    seed: int
    save_best: bool


def asked(args: argparse.Namespace | None) -> bool:
    """Whether these arguments ask for validation; nothing is checked."""
    if args is None or VALIDATION in run.yielded:
        return False
    return bool(getattr(args, VALIDATE.key, None) or getattr(args, VALIDATION_SPLIT.key, None))


def read(args: argparse.Namespace) -> ValidationOptions | None:
    """The settings in `args`; None when the run validates nothing. Stops the run when they cannot be honoured."""
    if VALIDATION in run.yielded:
        return None
    given = vars(args)
    for flag in FEATURES[VALIDATION]:
        fault = flag.fault(given)
        if fault is not None:
            stop(fault)
    if not asked(args):
        ignored = without_validation(given)
        if ignored is not None:
            say(f"{ignored} {NO_VALIDATION}")
        return None
    for flag, fault in faults(given):
        if flag.feature == VALIDATION:
            stop(fault)
    _refuse_what_cannot_work(args)
    return ValidationOptions(
        VALIDATE.read(given), VALIDATION_SPLIT.read(given), VALIDATE_EVERY.read(given),
        VALIDATION_TIMESTEPS.read(given), VALIDATION_SEED.read(given), SAVE_BEST.read(given),
    )  # fmt: skip


def _refuse_what_cannot_work(args: argparse.Namespace) -> None:
    if legacy.found():
        stop(legacy.message(), CONFLICT)
    name = VALIDATE.name if getattr(args, VALIDATE.key, None) else VALIDATION_SPLIT.name
    script = Path(sys.argv[0]).stem
    if any(word in script for word in NOT_VALIDATED):
        stop(f"{name} does not work with {script}: its training needs more than images and captions; remove {name}")
    if getattr(args, "deepspeed", False):
        stop(f"{name} does not work with DeepSpeed, which runs its own training step; remove one of them")
    if "schedulefree" in str(getattr(args, "optimizer_type", "") or "").lower():
        stop(
            f"{name} does not work with {args.optimizer_type}, whose weights during training are not the ones "
            "that it saves"
        )
    if getattr(args, "validation_split", None):
        stop(f"--validation_split is Kohya's own validation: give that or {name}, not both")
    if getattr(args, "dataset_class", None):
        stop(f"{name} does not work with --dataset_class: the images of such a class are not known; remove one of them")
    folder = getattr(args, VALIDATE.key, None)
    if folder and not Path(folder).is_dir():
        stop(f"{name} {folder}: there is no such folder")
