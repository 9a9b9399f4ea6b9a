"""What the saved files of a run hold: weights after how many steps, averaged over which of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.ema.schedules import Constant, Debiased, Exponential, Power, Schedule, Warmup
from kohya_ext.spec.outputs import BEST_METADATA, EMA_METADATA, SAVED
from kohya_ext.tensors.header import is_pickle, read_header

SUFFIX = ".safetensors"
# what an epoch counts as where no file tells its steps
STEPS_AN_EPOCH = 100
RECONSTRUCTED = "reconstructed_from"  # in the metadata of files that are made here
MOST_STEPS = 10**6  # profiles have a number for each


@dataclass(frozen=True)
class EmaOfFile:
    """The EMA that a file holds, by its own metadata. steps: real steps that it has seen."""

    schedule: Schedule
    steps: int
    update_every: int
    start_step: int

    @property
    def text(self) -> str:
        """The schedule and its number, for people."""
        number = getattr(self.schedule, "sigma_rel", None)
        return f"{self.schedule.name} {number if number is not None else getattr(self.schedule, 'decay', 0):g}"


@dataclass(frozen=True)
class Snapshot:
    """One file. name: of the run; step: real steps before it was saved; ema: None for raw weights."""

    path: Path
    name: str
    step: int
    ema: EmaOfFile | None
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def kind(self) -> str:
        """What the file holds, for people."""
        return f"EMA, {self.ema.text}" if self.ema is not None else "raw weights"


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, by step. in_epochs: no file tells the steps; each epoch counts as STEPS_AN_EPOCH."""

    snapshots: tuple[Snapshot, ...]
    in_epochs: bool = False


@dataclass(frozen=True)
class _Found:
    path: Path
    name: str
    epoch: int | None
    step: int | None
    steps: int | None
    ema: EmaOfFile | None
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]


def read_run(paths: Sequence[Path], *, name: str | None = None) -> RunFiles:
    """The snapshots among files and folders, the earliest first.

    Raises UsageError: no file, files of several runs, weights that do not fit together, an EMA that cannot be told.
    """
    found = [one for path in _files(paths) if (one := _read(path)) is not None]
    if not found:
        raise UsageError(
            f"{paths[0]} contains nothing but EMAs that `kohya-ext ema` has made and copies by --save_best: name the "
            "saved files"
        )
    names = sorted({one.name for one in found})
    if name is not None:
        found = [one for one in found if one.name == name]
    if not found:
        raise UsageError(f"no file of a run called {name}; there are {', '.join(names)}")
    if name is None and len(names) > 1:
        raise UsageError(f"these files are from several runs: {', '.join(names)}. Choose one with --name")
    _check_shapes(found)
    known = _steps_of(found)
    snapshots = [
        Snapshot(one.path, one.name, step, one.ema, one.shapes)
        for one, step in zip(found, known or _in_epochs(found), strict=True)
    ]
    snapshots.sort(key=lambda one: (one.step, one.ema is not None, str(one.path)))
    if snapshots[-1].step > MOST_STEPS:
        raise UsageError(f"{snapshots[-1].path} says it is of step {snapshots[-1].step:,}, more than any run")
    return RunFiles(tuple(snapshots), known is None)


def _files(paths: Iterable[Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path} contains no *{SUFFIX}")
        files |= dict.fromkeys(inside)
    return list(files)


def _read(path: Path) -> _Found | None:
    """What the file says of itself; None where we have made it from others, or copied it (--save_best)."""
    match = SAVED.fullmatch(path.stem)
    if match is None:
        raise UsageError(f"{path} has no file name")
    if is_pickle(path):
        raise UsageError(f"{path} is a pickle (.ckpt), which can run code and is not opened; convert it to {SUFFIX}")
    header = read_header(path)
    if EMA_METADATA + RECONSTRUCTED in header.metadata or any(key.startswith(BEST_METADATA) for key in header.metadata):
        return None
    shapes = {key: (entry.dtype, entry.shape) for key, entry in header.entries.items()}
    ema = _ema_of(path, header.metadata)
    if match["ema"] and ema is None:
        raise UsageError(f"{path} is called an EMA, but does not say which: it was not saved by kohya_ext")
    steps = ema.steps if ema is not None else _whole(header.metadata.get("ss_steps"))
    epoch, step = (int(match[key]) if match[key] else None for key in ("epoch", "step"))
    return _Found(path, match["name"], epoch, step, steps or None, ema, shapes)


def _ema_of(path: Path, metadata: Mapping[str, str]) -> EmaOfFile | None:
    """The EMA by the file's metadata, None for raw weights. Raises UsageError where the metadata make no sense."""
    recorded = {
        key.removeprefix(EMA_METADATA): value for key, value in metadata.items() if key.startswith(EMA_METADATA)
    }
    if not recorded:
        return None
    try:
        steps, every, start = (int(recorded[key]) for key in ("steps", "update_every", "start_step"))
        if every < 1 or start < 0 or not start + every <= steps <= MOST_STEPS:
            raise ValueError(f"{steps} steps, an update every {every} from step {start}")
        return EmaOfFile(_schedule(recorded), steps, every, start)
    except KeyError as error:
        raise UsageError(f"{path} does not say the {error.args[0]} of its EMA") from error
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{path}: the metadata of its EMA make no sense ({error})") from error


def _schedule(recorded: Mapping[str, str]) -> Schedule:
    kind = recorded["schedule"]
    if kind == Power.name:
        return Power(float(recorded["sigma_rel"]))
    if kind not in (Debiased.name, Constant.name, Warmup.name, Exponential.name):
        raise ValueError(f"unknown schedule {kind!r}")
    decay = float(recorded["decay"])
    if kind == Exponential.name:
        return Exponential(decay, float(recorded["exp_beta"]), int(recorded["max_steps"]))
    if kind == Debiased.name:
        return Debiased(decay)
    return Constant(decay) if kind == Constant.name else Warmup(decay)


def _whole(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _check_shapes(found: Sequence[_Found]) -> None:
    first = found[0]
    shapes = {key: shape for key, (_, shape) in first.shapes.items()}
    for other in found[1:]:
        theirs = {key: shape for key, (_, shape) in other.shapes.items()}
        if theirs != shapes:
            key = next(key for key in [*shapes, *theirs] if shapes.get(key) != theirs.get(key))
            raise UsageError(f"{first.path} and {other.path} are from different runs: {key} differs")


def _steps_of(found: Sequence[_Found]) -> list[int] | None:
    """The step of each file, None where one cannot be told: by its name, its metadata, or another file of its epoch."""
    of_epoch = {one.epoch: one.steps for one in found if one.steps}
    each = {steps / epoch for epoch, steps in of_epoch.items() if epoch and steps}
    steps_an_epoch = each.pop() if len(each) == 1 else None
    steps: list[int] = []
    for one in found:
        known = one.step or one.steps or of_epoch.get(one.epoch)
        if known is None and steps_an_epoch is not None and one.epoch:
            known = round(one.epoch * steps_an_epoch)
        if known is None:
            return None
        steps.append(known)
    return steps


def _in_epochs(found: Sequence[_Found]) -> list[int]:
    """Stand-ins for the steps of raw files that only have their epoch in their names; the last one comes after them."""
    if any(one.ema is not None or one.step for one in found):
        missing = next(one for one in found if not (one.steps or one.step))
        raise UsageError(f"{missing.path} does not say after how many steps it was saved: leave it out")
    epochs = sorted({one.epoch for one in found if one.epoch})
    if not epochs:
        raise UsageError(f"{found[0].path} does not say after which step or epoch it was saved")
    apart = math.gcd(*epochs)
    return [(one.epoch or epochs[-1] + apart) * STEPS_AN_EPOCH for one in found]
