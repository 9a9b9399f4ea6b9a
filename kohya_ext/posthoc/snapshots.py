"""What the saved files and snapshots of a run hold: weights after how many steps, averaged over which of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.ema.schedules import Constant, Debiased, Exponential, Power, Schedule, Warmup
from kohya_ext.ema.snapshot import REFERENCE_KEY, SCALES, SNAPSHOT_KEY
from kohya_ext.spec.outputs import (
    BEST_METADATA,
    EMA_METADATA,
    REFERENCE_FILE,
    SAMPLES_FILE,
    SAVED,
    SNAPSHOT,
    SNAPSHOTS_SUFFIX,
)
from kohya_ext.tensors.header import Header, is_pickle, read_header

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
    """One file. name: of the run; step: real steps before it was saved; ema: None for raw weights.

    stored: what a file of --ema_snapshot_every holds, for people; "" for a model file.
    """

    path: Path
    name: str
    step: int
    ema: EmaOfFile | None
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    stored: str = ""

    @property
    def kind(self) -> str:
        """What the file holds, for people."""
        stored = f", {self.stored}" if self.stored else ""
        return f"EMA, {self.ema.text}{stored}" if self.ema is not None else "raw weights"


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, by step.

    snapshots: what EMAs are made from: where the run has written files for that alone, only those. saved: its model
    files then. in_epochs: no file tells the steps; each epoch counts as STEPS_AN_EPOCH.
    """

    snapshots: tuple[Snapshot, ...]
    in_epochs: bool = False
    saved: tuple[Snapshot, ...] = ()

    @property
    def files(self) -> list[Snapshot]:
        """All of them, by step."""
        return sorted((*self.snapshots, *self.saved), key=_place)


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
    files = _files(paths)
    stored = [_stored(path) for path in files if _is_stored(path)]
    found = [one for path in files if not _is_stored(path) and (one := _read(path)) is not None]
    if not found and not stored:
        raise UsageError(
            f"{paths[0]} contains nothing but EMAs that `kohya-ext ema` has made and copies by --save_best: name the "
            "saved files"
        )
    names = sorted({one.name for one in found} | {one.name for one in stored})
    if name is not None:
        found = [one for one in found if one.name == name]
        stored = [one for one in stored if one.name == name]
    if not found and not stored:
        raise UsageError(f"no file of a run called {name}; there are {', '.join(names)}")
    if name is None and len(names) > 1:
        raise UsageError(f"these files are from several runs: {', '.join(names)}. Choose one with --name")
    _check_shapes([(one.path, one.shapes) for one in found])
    _check_shapes([(one.path, one.shapes) for one in stored])
    known = _steps_of(found)
    if stored and known is None:
        found = [one for one in found if one.steps or one.step]
        known = _steps_of(found)
    snapshots = [
        Snapshot(one.path, one.name, step, one.ema, one.shapes)
        for one, step in zip(found, _in_epochs(found) if known is None else known, strict=True)
    ]
    snapshots.sort(key=_place)
    if snapshots and snapshots[-1].step > MOST_STEPS:
        raise UsageError(f"{snapshots[-1].path} says it is of step {snapshots[-1].step:,}, more than any run")
    if stored:
        return RunFiles(tuple(sorted(stored, key=_place)), saved=tuple(snapshots))
    return RunFiles(tuple(snapshots), known is None)


def _place(one: Snapshot) -> tuple[int, bool, str]:
    return one.step, one.ema is not None, str(one.path)


def _files(paths: Iterable[Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        inside = _inside(path) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path} contains no *{SUFFIX}")
        files |= dict.fromkeys(inside)
    return list(files)


def _inside(folder: Path) -> list[Path]:
    """The model files in a folder and the snapshots next to them; those of its run for a folder of snapshots."""
    if folder.resolve().name.endswith(SNAPSHOTS_SUFFIX):
        name = folder.resolve().name.removesuffix(SNAPSHOTS_SUFFIX)
        models = [path for path in sorted(folder.resolve().parent.glob(f"*{SUFFIX}")) if _run_of(path) == name]
        return [*_snapshots_in(folder), *models]
    inside = sorted(folder.glob(f"*{SUFFIX}"))
    return inside + [one for found in sorted(folder.glob(f"*{SNAPSHOTS_SUFFIX}")) for one in _snapshots_in(found)]


def _snapshots_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if SNAPSHOT.fullmatch(path.name))


def _run_of(path: Path) -> str:
    match = SAVED.fullmatch(path.stem)
    return match["name"] if match is not None else ""


def _is_stored(path: Path) -> bool:
    """Whether a file is a snapshot by its name and place: what it says of itself is looked at later."""
    of_run = path.resolve().parent.name.endswith(SNAPSHOTS_SUFFIX)
    if of_run and path.name in (REFERENCE_FILE, SAMPLES_FILE):
        raise UsageError(f"{path} is not a snapshot, but goes with those in its folder: name the folder")
    return of_run and SNAPSHOT.fullmatch(path.name) is not None


def _stored(path: Path) -> Snapshot:
    header = read_header(path)
    ema, dtype = _ema_of(path, header.metadata), header.metadata.get(SNAPSHOT_KEY)
    if ema is None or dtype is None:
        raise UsageError(f"{path} does not say which EMA it is a snapshot of")
    shapes = {key: form for key, form in _shapes(header).items() if key != SCALES}
    what = f"{dtype} difference" if REFERENCE_KEY in header.metadata else dtype
    name = path.resolve().parent.name.removesuffix(SNAPSHOTS_SUFFIX)
    return Snapshot(path, name, ema.steps, ema, shapes, f"snapshot ({what})")


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
    shapes = _shapes(header)
    ema = _ema_of(path, header.metadata)
    if match["ema"] and ema is None:
        raise UsageError(f"{path} is called an EMA, but does not say which: it was not saved by kohya_ext")
    steps = ema.steps if ema is not None else _whole(header.metadata.get("ss_steps"))
    epoch, step = (int(match[key]) if match[key] else None for key in ("epoch", "step"))
    return _Found(path, match["name"], epoch, step, steps or None, ema, shapes)


def ema_of(path: Path) -> EmaOfFile | None:
    """The EMA that a file says it holds, None for raw weights. Raises UsageError."""
    return _ema_of(path, read_header(path).metadata)


def shapes_of(path: Path) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a file: the name of their dtype, and their shape. Raises UsageError."""
    return _shapes(read_header(path))


def _shapes(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {key: (entry.dtype, entry.shape) for key, entry in header.entries.items()}


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


def _check_shapes(files: Sequence[tuple[Path, Mapping[str, tuple[str, tuple[int, ...]]]]]) -> None:
    known = [(path, {key: shape for key, (_, shape) in shapes.items()}) for path, shapes in files]
    for path, shapes in known[1:]:
        first, expected = known[0]
        if shapes != expected:
            key = next(key for key in [*expected, *shapes] if expected.get(key) != shapes.get(key))
            raise UsageError(f"{first} and {path} are from different runs: {key} differs")


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
