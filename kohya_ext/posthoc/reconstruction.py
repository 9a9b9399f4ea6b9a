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
from kohya_ext.posthoc.layout import Layout, Piece, own_layout, recognized
from kohya_ext.posthoc.snapshots import RECONSTRUCTED, RunFiles, Snapshot, ema_of, shapes_of
from kohya_ext.posthoc.sources import ROUNDING, WeightSource, opened
from kohya_ext.spec.outputs import EMA_METADATA, SAMPLES_FILE
from kohya_ext.tensors.elements import DEVICE_SLICE, slices
from kohya_ext.tensors.streaming import write_tensors
from kohya_ext.tensors.tensorfile import DTYPES, TensorFile

# a mixture that misses more of the EMA's distance from the raw weights is refused, unless forced
MOST_ERROR = 0.1
# elements that are looked at to learn what rounding costs
SAMPLE = 1 << 22
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
    """A mixture for a target. sources: with their coefficients in `mixture`; layout: of the new file."""

    target: WantedEma
    sources: tuple[Snapshot, ...]
    mixture: Mixture
    layout: Layout


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
    layout = _layout(run, sources)
    rounded, again, distances = _sampled(sources, layout)
    pace = pace_of(profiles, distances)
    moved = math.hypot(*distances)
    # how far an average is from the raw weights, by how far the snapshots are from each other
    told = math.hypot(*(distance(one, other, pace) for one, other in pairwise(profiles)))
    made = []
    for target in targets:
        wanted = ema_profile(target.schedule, step, step)
        away = distance(wanted, raw_profile(step, step), pace) * (moved / told if told else 0.0)
        noises = (rounded / away, again / away) if away else (0.0, 0.0)
        made.append(MixturePlan(target, sources, mix(profiles, wanted, pace, *noises), layout))
    return made


def _layout(run: RunFiles, sources: Sequence[Snapshot]) -> Layout:
    """What the new file is like: the newest source; for snapshots, the model file that was saved with the samples."""
    newest = sources[-1]
    if not newest.stored:
        return own_layout(newest.path, newest.shapes)
    samples = newest.path.with_name(SAMPLES_FILE)
    if not samples.is_file():
        raise UsageError(f"{samples} is not there: no EMA was saved in this run, which tells what a model file is like")
    sampled = ema_of(samples)
    like = next((one for one in run.saved if sampled is not None and one.ema == sampled), None)
    if like is None:
        steps = "" if sampled is None else f" of step {sampled.steps}"
        raise UsageError(
            f"the model file with the EMA{steps}, from which the new file gets its names and metadata, is not among "
            f"these files: name the folder that it is in, next to {samples.parent}"
        )
    ends = [opened(sources[0]), opened(newest)]
    shapes = {name: shape for name, (_, shape) in newest.shapes.items()}

    def is_all(name: str, value: float) -> bool:
        parts = [slice(at, at + length) for at, length in slices(torch.Size(shapes[name]).numel(), DEVICE_SLICE)]
        found = all(bool((one.part(name, part) == value).all()) for one in ends for part in parts)
        for one in ends:
            one.release()
        return found

    return recognized(like.path, samples, shapes, is_all)


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


def _sampled(sources: Sequence[Snapshot], layout: Layout) -> tuple[float, float, list[float]]:
    """What saving has rounded away of the last source, what it will of the new file, and how far each source is from
    the next: in a sample of weights.
    """
    dtypes = {key: dtype for key, (dtype, _) in shapes_of(layout.like).items()}
    pieces = [(ROUNDING.get(dtypes[key]), piece) for key, found in layout.pieces.items() for piece in found]
    pieces = [(digit, piece) for digit, piece in pieces if digit is not None and piece.count]
    files = [opened(one) for one in sources]
    a_tensor = max(1, SAMPLE // max(1, len(pieces)))
    rounded, again, squares = 0.0, 0.0, [0.0] * (len(files) - 1)
    for digit, piece in pieces:
        where = slice(None, None, max(1, piece.count // a_tensor))
        parts = [_released(file, file.part(piece.name, where)) for file in files]
        # rounding is evenly spread over half a digit on both sides
        rounded += float(_released(files[-1], files[-1].rounded(piece.name, where)).square().sum()) / 3
        again += float((parts[-1] * digit).square().sum()) / 3
        squares = [
            square + float((after - before).square().sum())
            for square, (before, after) in zip(squares, pairwise(parts), strict=True)
        ]
    if not math.isfinite(sum(squares)):
        raise UsageError(f"{sources[0].path.parent}: one of the snapshots contains NaN or infinite weights")
    return math.sqrt(rounded), math.sqrt(again), [math.sqrt(square) for square in squares]


def write(plan: MixturePlan, path: Path, progress: Callable[[int, int], None] = lambda *_: None) -> None:
    """Write the mixture, whole or not at all, in the types of the newest saved file.

    progress: is told (weights done, weights in total).

    Raises UsageError: a source contains NaN or infinite weights; ConflictError: the disk.
    """
    used = [(one, factor) for one, factor in zip(plan.sources, plan.mixture.coefficients, strict=True) if factor]
    files = [(opened(one), factor) for one, factor in used]
    like = TensorFile(plan.layout.like)
    forms = {key: (DTYPES[dtype], shape) for key, (dtype, shape) in shapes_of(plan.layout.like).items()}
    total = sum(torch.Size(shape).numel() for _, shape in forms.values())

    def mixed() -> Iterator[Tensor]:
        done = 0
        for key, (dtype, shape) in forms.items():
            pieces = plan.layout.pieces.get(key)
            # what holds no weights (counters, scales of adapters, positions) is as it is
            yield like.load(key) if pieces is None else _mixed(key, pieces, files, dtype).view(shape)
            like.release()
            done += torch.Size(shape).numel()
            progress(done, total)

    with explained_target(path):
        write_tensors(path, forms, mixed(), _metadata(plan, like.metadata), mode=NEW_FILE_MODE)


def _released(file: WeightSource, read: Tensor) -> Tensor:
    """What has been read, a copy; a sample of a tensor touches most of its pages, in each file."""
    file.release()
    return read


def _mixed(
    key: str, pieces: Sequence[Piece], files: Sequence[tuple[WeightSource, float]], dtype: torch.dtype
) -> Tensor:
    """One tensor of the new file, flat."""
    made = torch.empty(sum(piece.count for piece in pieces), dtype=dtype)
    begin = 0
    for piece in pieces:
        goal = made[begin : begin + piece.count]
        begin += piece.count
        flat = torch.empty_like(goal) if piece.turned else goal
        for start, length in slices(piece.count, DEVICE_SLICE):
            flat[start : start + length] = _mixed_part(key, piece.name, slice(start, start + length), files)
            for file, _ in files:
                file.release()
        if piece.turned:
            goal.view(piece.shape[::-1]).copy_(flat.view(piece.shape).t())
    return made


def _mixed_part(key: str, name: str, where: slice, files: Sequence[tuple[WeightSource, float]]) -> Tensor:
    """What is alike in all sources stays as it is."""
    first, alike = files[0][0].part(name, where), True
    total = first * files[0][1]
    for file, factor in files[1:]:
        part = file.part(name, where)
        alike = alike and torch.equal(part, first)
        total.add_(part, alpha=factor)
    if not math.isfinite(float(total.sum())):
        raise UsageError(f"{key} contains NaN or infinite weights in one of the files")
    return first if alike else total


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
