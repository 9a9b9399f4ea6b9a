"""A made-up run that saves raw weights and EMAs as Kohya and our hooks do, and the truth about its averages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kohya_ext.ema.posthoc import ema_profile
from kohya_ext.ema.schedules import Schedule
from kohya_ext.ema.shadow import Shadow
from kohya_ext.ema.snapshot import write_reference, write_samples, write_snapshot
from kohya_ext.spec.outputs import EMA_METADATA, REFERENCE_FILE, SAMPLES_FILE, snapshot_file, snapshots_folder
from kohya_ext.tensors.tensorfile import TensorFile

STEPS = 160


@dataclass
class SavedRun:
    """weights: name -> those after each step, (STEPS + 1, ...), float64; row 0 is the start model."""

    folder: Path
    weights: dict[str, Tensor] = field(default_factory=dict)

    def truth(self, profile: Tensor) -> dict[str, Tensor]:
        return {
            name: (profile[:, None] * rows.flatten(1)).sum(dim=0).view(rows.shape[1:])
            for name, rows in self.weights.items()
        }

    def distance(self, made: dict[str, Tensor], profile: Tensor, step: int = STEPS) -> float:
        """How far a file is from the true average, as a part of the distance of that from the raw weights."""
        truth = self.truth(profile)
        off = sum(float((made[name].double() - truth[name]).square().sum()) for name in truth)
        whole = sum(float((rows[step] - truth[name]).square().sum()) for name, rows in self.weights.items())
        return float((off / whole) ** 0.5)


def saved_run(
    folder: Path, schedules: dict[str, Schedule], every: int = 10, dtype: torch.dtype = torch.float32, raw: bool = True
) -> SavedRun:
    """Saves each `every` steps. schedules: output name -> that of its EMA; all of the same weights."""
    generator = torch.Generator().manual_seed(1)
    run = SavedRun(folder)
    for name, shape in (("a.weight", (12, 8)), ("b.bias", (5,))):
        noise = torch.randn(STEPS + 1, *shape, generator=generator, dtype=torch.float64) * 1e-3
        run.weights[name] = 1.0 + noise.cumsum(dim=0)
    parameters = {name: torch.nn.Parameter(rows[0].clone()) for name, rows in run.weights.items()}
    shadows = {
        name: Shadow(list(parameters.items()), schedule, dtype=torch.float64, compiled=False)
        for name, schedule in schedules.items()
    }
    for shadow in shadows.values():
        shadow.capture()
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(run.weights[name][step])
        for shadow in shadows.values():
            shadow.update()
        if step % every:
            continue
        ending = "" if step == STEPS else f"-step{step:08d}"
        for name, shadow in shadows.items():
            average = {key: value.to(dtype) for key, _, value in shadow.pairs()}
            save(folder / f"{name}-ema{ending}.safetensors", average, metadata(shadow.schedule, step))
        if raw:
            now = {key: value.detach().to(dtype).clone() for key, value in parameters.items()}
            save(folder / f"{next(iter(schedules), 'run')}{ending}.safetensors", now, {"ss_steps": str(step)})
    return run


def snapshots_of(
    saved: SavedRun,
    name: str,
    *schedules: Schedule,
    every: int = 10,
    dtype: str = "float32",
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> Path:
    """The folder of the snapshots of a run that has been saved, one EMA a schedule.

    convert: what the saver of the model makes of its parameters.
    """
    folder = saved.folder / snapshots_folder(name)
    folder.mkdir()
    for place, schedule in enumerate(schedules):
        for step in range(every, STEPS + 1, every):
            average = saved.truth(ema_profile(schedule, step, STEPS))
            entries = [(f"0.{key}", rows[step].float(), average[key].float()) for key, rows in saved.weights.items()]
            if dtype != "float32" and not (folder / REFERENCE_FILE).exists():
                write_reference(folder / REFERENCE_FILE, entries)
            reference = None if dtype == "float32" else TensorFile(folder / REFERENCE_FILE)
            write_snapshot(folder / snapshot_file(place, step), entries, dtype, metadata(schedule, step), reference)
    average = {key: value.float() for key, value in saved.truth(ema_profile(schedules[0], STEPS, STEPS)).items()}
    write_samples(
        folder / SAMPLES_FILE, [(f"0.{key}", value, value) for key, value in average.items()],
        metadata(schedules[0], STEPS),
    )  # fmt: skip
    save(saved.folder / f"{name}-ema.safetensors", convert(average), metadata(schedules[0], STEPS))
    return folder


def save(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """What every file has besides: a counter, which is no weight."""
    save_file({**tensors, "position_ids": torch.arange(3)}, str(path), {"format": "pt", **about})


def metadata(schedule: Schedule, steps: int) -> dict[str, str]:
    number = "sigma_rel" if hasattr(schedule, "sigma_rel") else "decay"
    entries = {"schedule": schedule.name, number: getattr(schedule, number), "steps": steps, "updates": steps}
    entries |= {"update_every": 1, "start_step": 0, "version": "0", "dtype": "float32"}
    return {EMA_METADATA + key: str(value) for key, value in entries.items()}
