"""Reconstructs EMAs of other lengths from snapshots: plans the mixtures, then writes them tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from kohya_ext.core.errors import UsageError
from kohya_ext.ema.posthoc import Mixture, distance, ema_profile, mix, pace_of, raw_profile
from kohya_ext.ema.schedules import Debiased, Power
from kohya_ext.files.atomic import NEW_FILE_MODE
from kohya_ext.files.disk import explained_target
from kohya_ext.posthoc.snapshots import RECONSTRUCTED, RunFiles, Snapshot
from kohya_ext.spec.outputs import EMA_METADATA
from kohya_ext.tensors.elements import DEVICE_SLICE, slices
from kohya_ext.tensors.streaming import write_tensors
from kohya_ext.tensors.tensorfile import DTYPES, TensorFile

# a mixture that misses more of the EMA's distance from the raw weights is refused, unless forced
MOST_ERROR = 0.1
# elements that are looked at to learn what rounding costs
SAMPLE = 1 << 22
# half of the last digit, relative to the value at most, of the types that weights are saved in
ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
# of what a saver says about the weights themselves, which are others now
OF_THE_WEIGHTS = ("sshs_", "modelspec.hash_", "modelspec.thumbnail")


@dataclass(frozen=True)
class WantedEma:
    """An EMA that is wanted, and after how many steps."""

    schedule: Power | Debiased
    step: int

    @property
    def number(self) -> tuple[str, float]:
        """What its length is given by, and how much of it."""
        if isinstance(self.schedule, Power):
            return "sigma_rel", self.schedule.sigma_rel
        return "decay", self.schedule.decay


@dataclass(frozen=True)
class MixturePlan:
    """A mixture for a target. sources: with their coefficients in `mixture`."""

    target: WantedEma
    sources: tuple[Snapshot, ...]
    mixture: Mixture


def target_of(
    run: RunFiles, *, sigma_rel: float | None = None, decay: float | None = None, step: int | None = None
) -> WantedEma:
    """The EMA of that width or decay at `step`, None for the last snapshot's. Raises UsageError."""
    last = run.snapshots[-1].step
    steps = last if step is None else step
    if not 0 < steps <= last:
        raise UsageError(f"--step {step}: the snapshots are of steps {run.snapshots[0].step} to {last}")
    try:
        schedule = Power(sigma_rel) if sigma_rel is not None else Debiased(float(decay or 0))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if run.in_epochs and sigma_rel is None:
        raise UsageError(
            "no file says how many steps an epoch has, so a decay for each step means nothing: use --sigma-rel"
        )
    return WantedEma(schedule, steps)


def plan(run: RunFiles, target: WantedEma) -> MixturePlan:
    """The best mixture of the snapshots up to the target's step; raises as `plans`."""
    return plans(run, [target])[0]


def plans(run: RunFiles, targets: Sequence[WantedEma]) -> list[MixturePlan]:
    """The best mixture for each of the targets, all of one step, of the snapshots up to it; these are looked at once.

    Raises UsageError: too few of them, or weights that are not finite.
    """
    step = targets[0].step
    sources = tuple(one for one in run.snapshots if one.step <= step)
    if len(sources) < 2:
        raise UsageError(f"only {len(sources)} snapshot(s) up to step {step}: a mixture takes at least two")
    odd = {dtype for dtype, _ in sources[-1].shapes.values() if dtype.startswith("F") and dtype not in ROUNDING}
    if odd:
        raise UsageError(f"{sources[-1].path} holds weights as {', '.join(sorted(odd))}: too coarse to be averaged")
    profiles = [_profile(one, step) for one in sources]
    rounded, distances = _sampled(sources)
    pace = pace_of(profiles, distances)
    moved = math.hypot(*distances)
    # how far an average is from the raw weights, by how far the snapshots are from each other
    told = math.hypot(*(distance(one, other, pace) for one, other in pairwise(profiles)))
    made = []
    for target in targets:
        wanted = ema_profile(target.schedule, step, step)
        away = distance(wanted, raw_profile(step, step), pace) * (moved / told if told else 0.0)
        made.append(MixturePlan(target, sources, mix(profiles, wanted, pace, rounded / away if away else 0.0)))
    return made


def _profile(source: Snapshot, steps: int) -> Tensor:
    if source.ema is None:
        return raw_profile(source.step, steps)
    return ema_profile(
        source.ema.schedule,
        source.ema.steps,
        steps,
        update_every=source.ema.update_every,
        start_step=source.ema.start_step,
    )


def _sampled(sources: Sequence[Snapshot]) -> tuple[float, list[float]]:
    """What saving has rounded away of the last file, and how far each file is from the next, in a sample of weights."""
    shapes = {key: dtype for key, (dtype, shape) in sources[-1].shapes.items() if dtype in ROUNDING and 0 not in shape}
    files = [TensorFile(one.path) for one in sources]
    a_tensor = max(1, SAMPLE // max(1, len(shapes)))
    rounded, squares = 0.0, [0.0] * (len(files) - 1)
    for key, dtype in shapes.items():
        rows = [file.load(key).reshape(-1) for file in files]
        stride = max(1, len(rows[0]) // a_tensor)
        parts = [row[::stride].double() for row in rows]
        # rounding is evenly spread over half a digit on both sides
        rounded += float((parts[-1] * ROUNDING[dtype]).square().sum()) / 3
        squares = [
            square + float((after - before).square().sum())
            for square, (before, after) in zip(squares, pairwise(parts), strict=True)
        ]
    if not math.isfinite(sum(squares)):
        raise UsageError(f"{sources[0].path.parent}: one of the snapshots contains NaN or infinite weights")
    return math.sqrt(rounded), [math.sqrt(square) for square in squares]


def write(plan: MixturePlan, path: Path, progress: Callable[[int, int], None] = lambda *_: None) -> None:
    """Write the mixture, whole or not at all, in the types of the newest snapshot.

    progress: is told (weights done, weights in total).

    Raises UsageError: a source contains NaN or infinite weights; ConflictError: the disk.
    """
    used = [(one, factor) for one, factor in zip(plan.sources, plan.mixture.coefficients, strict=True) if factor]
    files = [(TensorFile(one.path), factor) for one, factor in used]
    forms = {key: (DTYPES[dtype], shape) for key, (dtype, shape) in plan.sources[-1].shapes.items()}
    newest = TensorFile(plan.sources[-1].path)
    total = sum(torch.Size(shape).numel() for _, shape in forms.values())

    def mixed() -> Iterator[Tensor]:
        done = 0
        for key, (dtype, shape) in forms.items():
            yield _mixed(key, dtype, files, newest)
            done += torch.Size(shape).numel()
            progress(done, total)

    with explained_target(path):
        write_tensors(path, forms, mixed(), _metadata(plan, newest.metadata), mode=NEW_FILE_MODE)


def _mixed(key: str, dtype: torch.dtype, files: Sequence[tuple[TensorFile, float]], newest: TensorFile) -> Tensor:
    """One tensor; what holds no weights (counters, scales of adapters, positions) is the newest file's."""
    like = newest.load(key)
    if not dtype.is_floating_point:
        return like
    tensors = [(file.load(key), factor) for file, factor in files]
    if all(torch.equal(tensor, like) for tensor, _ in tensors):
        return like
    flat = torch.empty(like.numel(), dtype=dtype)
    views = [(tensor.reshape(-1), factor) for tensor, factor in tensors]
    for start, length in slices(flat.numel(), DEVICE_SLICE):
        total = torch.zeros(length, dtype=torch.float64)
        for view, factor in views:
            total.add_(view[start : start + length].double(), alpha=factor)
        if not math.isfinite(float(total.sum())):
            raise UsageError(f"{key} contains NaN or infinite weights in one of the files")
        flat[start : start + length] = total
    return flat.view(like.shape)


def _metadata(plan: MixturePlan, of_newest: Mapping[str, str]) -> dict[str, str]:
    """The newest file's, without what it says of its own weights, and which EMA this is."""
    metadata = {key: value for key, value in of_newest.items() if not key.startswith((EMA_METADATA, *OF_THE_WEIGHTS))}
    key, number = plan.target.number
    entries = {
        "schedule": plan.target.schedule.name,
        key: number,
        "steps": plan.target.step,
        "update_every": 1,
        "start_step": 0,
        RECONSTRUCTED: len(plan.sources),
        "reconstruction_error": f"{plan.mixture.error:.3g}",
    }
    return metadata | {EMA_METADATA + name: str(value) for name, value in entries.items()}
