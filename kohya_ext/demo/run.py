"""The demonstration: a miniature of Kohya, patched by the real installer, trains a toy model with AdaCoor and EMA.

Nothing here trains. The miniature's own `sdxl_train.py` does, in a process of its own, and gets AdaCoor, the flags and
the EMA files through the hooks that the installer put into the tree.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.core import shell
from kohya_ext.core.bundle import PACKAGE_DIR
from kohya_ext.core.errors import KohyaExtError, UsageError
from kohya_ext.demo.checkout import NEWEST, build, training_root
from kohya_ext.spec.optimizers import ADACOOR

NAME = "toy"
DEFAULT_FOLDER = "kohya-ext-demo"
DEFAULT_STEPS = 600
FEWEST_STEPS = 8
SAVES = 4
SEED = 1
# A fine-tune starts from a trained model and wants a rate of 1; the toy starts from random weights and has far to go.
# Warm-up, because the first steps of an Adagrad-like optimizer move every weight by the whole rate.
LEARNING_RATE = 100
WARMUP_SHARE = 1 / 10
MIN_SNR_GAMMA = 5
# How much of the run the average covers. A longer average would lag behind a loss that still falls fast.
EMA_SHARE = 1 / 15
POLL_SECONDS = 0.2
LOG_LINES_SHOWN = 12


@dataclass(frozen=True)
class Demo:
    """The places of one demonstration, all below `folder`, and the length of its run."""

    folder: Path
    steps: int

    @property
    def checkout(self) -> Path:
        """The miniature of Kohya that is patched and trains."""
        return self.folder / "kohya_ss"

    @property
    def output(self) -> Path:
        """The folder of the trained models."""
        return self.folder / "output"

    @property
    def log(self) -> Path:
        """What the training run has printed."""
        return self.folder / "train.log"

    @property
    def image(self) -> Path:
        """The image of losses and samples."""
        return self.folder / "demo.png"

    @property
    def ema_decay(self) -> float:
        """The decay whose EMA covers `EMA_SHARE` of the run."""
        return round(1 - 1 / max(2.0, self.steps * EMA_SHARE), 4)

    def command(self) -> list[str]:
        """The training command, as one would type it in the miniature's folder of training scripts."""
        save_every = max(1, self.steps // SAVES)
        rate = str(LEARNING_RATE)
        words = [sys.executable, "sdxl_train.py", "--pretrained_model_name_or_path", "toy"]
        words += ["--train_data_dir", str(self.folder / "images"), "--caption_extension", ".txt"]
        words += ["--resolution", "16", "--train_batch_size", "16", "--max_data_loader_n_workers", "0"]
        words += ["--optimizer_type", ADACOOR.name, "--optimizer_args", ADACOOR.words, "--learning_rate", rate]
        words += ["--train_text_encoder", "--learning_rate_te1", rate, "--learning_rate_te2", rate]
        words += ["--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", str(int(self.steps * WARMUP_SHARE))]
        words += ["--max_train_steps", str(self.steps), "--seed", str(SEED), "--min_snr_gamma", str(MIN_SNR_GAMMA)]
        words += ["--enable_ema", f"--ema_decay={self.ema_decay}"]
        words += [
            "--save_every_n_steps",
            str(save_every),
            "--save_model_as",
            "safetensors",
            "--save_precision",
            "float",
        ]
        words += ["--output_dir", str(self.output), "--output_name", NAME, "--logging_dir", str(self.folder / "logs")]
        return words

    def environ(self) -> dict[str, str]:
        """What the training process runs with: this copy of kohya_ext, one thread, the CPU."""
        paths = [str(PACKAGE_DIR.parent), os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "ACCELERATE_USE_CPU": "true"}
        # more threads gain little on a net of this size, and lose much where another program wants a core
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **settings}


def choose_folder(wanted: str | None) -> Path:
    """An absent or empty folder: the given one, or a new one in the current folder.

    Raises UsageError when the given one holds something already.
    """
    if wanted is not None:
        folder = Path(wanted).expanduser().resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not empty; give the demo a folder of its own, or omit --out")
        return folder
    for number in range(1, 1000):
        folder = Path.cwd() / (DEFAULT_FOLDER if number == 1 else f"{DEFAULT_FOLDER}-{number}")
        if not folder.exists():
            return folder
    raise UsageError(f"{Path.cwd()} is full of demos; remove some")


def prepare(demo: Demo) -> dict[str, int]:
    """Draws the images, writes the miniature, and lets the real installer patch it; what it did, in numbers."""
    from kohya_ext import presets
    from kohya_ext.checkout.checkout import describe
    from kohya_ext.install import apply

    number = write_images(demo.folder / "images" / "1_shapes", per_caption=12)
    write_images(demo.folder / "held-out", per_caption=8, seed=1)
    checkout = describe(build(NEWEST, demo.checkout))
    outcome = apply.install(checkout, presets=presets.collect(checkout))
    return {"images": number, "changed": len(outcome.plan.changes), "hooks": len(outcome.plan.hooks)}


def train(demo: Demo, progress: Callable[[int, float], None]) -> None:
    """Runs the miniature's training script to its end; `progress` hears of every new step and its loss.

    Raises KohyaExtError, with the last lines of the log, when the run fails.
    """
    command, folder = demo.command(), training_root(demo.checkout)
    with demo.log.open("wb") as log:
        log.write((shell.line(*command) + "\n\n").encode())
        log.flush()
        process = subprocess.Popen(command, cwd=folder, env=demo.environ(), stdout=log, stderr=subprocess.STDOUT)
        try:
            for row in _follow(demo.folder / "logs", process):
                progress(int(row["step"]), float(row["loss"]))
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
    if process.returncode != 0:
        last = demo.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        raise KohyaExtError("\n".join([f"the demo's training run failed, see {demo.log}; its last lines:", *last]))


def evaluate(demo: Demo) -> list[dict[str, float]]:
    """Draws the image from the saved files; the losses of raw and EMA weights at every save point."""
    what = (
        f"{ADACOOR.name} ({ADACOOR.words}, rate {LEARNING_RATE}), EMA decay {demo.ema_decay}, {demo.steps} steps, CPU"
    )
    words = [sys.executable, "-m", "kohya_ext.demo.evaluate", "--training_root", str(training_root(demo.checkout))]
    words += ["--models", str(demo.output), "--name", NAME, "--metrics", str(metrics_file(demo.folder / "logs"))]
    words += ["--held_out", str(demo.folder / "held-out"), "--image", str(demo.image)]
    words += ["--title", "kohya_ext demo: a toy diffusion model, trained in a patched miniature of Kohya"]
    words += ["--subtitle", f"{what}. Loss: squared error of the noise, min-SNR weighted."]
    done = subprocess.run(words, env=demo.environ(), capture_output=True, text=True)
    if done.returncode != 0:
        raise KohyaExtError(f"the demo could not plot its image:\n{done.stderr[-2000:]}")
    result: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def metrics_file(logs: Path) -> Path | None:
    """The log of the run's losses, once the run has begun to write it."""
    return next(iter(sorted(logs.glob("*/metrics.jsonl"))), None)


def _follow(logs: Path, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """The rows of the run's log as they come, until the process has ended and all is read."""
    position, partial = 0, ""
    while True:
        ended = process.poll() is not None
        file = metrics_file(logs)
        if file is not None:
            with file.open(encoding="utf-8") as log:
                log.seek(position)
                partial += log.read()
                position = log.tell()
            *lines, partial = partial.split("\n")
            rows = (json.loads(line) for line in lines if line)
            yield from (row for row in rows if "loss" in row)
        if ended:
            return
        time.sleep(POLL_SECONDS)


# The toy's data set: coloured shapes on a dark ground, each with a caption that names both.
COLOURS = {"red": (230, 60, 50), "green": (70, 190, 80), "blue": (70, 120, 240), "yellow": (240, 200, 60)}
SHAPES = ("circle", "square", "triangle")
GROUND = (24, 26, 34)
SIDE = 16
_OVERSAMPLING = 8


def captions() -> list[str]:
    """Every colour with every shape, in a fixed order."""
    return [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]


def write_images(folder: Path, per_caption: int, seed: int = 0) -> int:
    """Draws `per_caption` images of each caption, at varying places and sizes, next to their `.txt`; how many."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    draw_from = random.Random(seed)  # noqa: S311 - a data set, no secret
    for caption in captions():
        _, colour, shape = caption.split()
        for number in range(per_caption):
            large = SIDE * _OVERSAMPLING
            image = Image.new("RGB", (large, large), GROUND)
            radius = draw_from.uniform(0.29, 0.36) * large
            x, y = (draw_from.uniform(0.44, 0.56) * large for _ in "xy")
            _draw(ImageDraw.Draw(image), shape, (x, y), radius, COLOURS[colour])
            stem = folder / f"{colour}_{shape}_{number:02d}"
            image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(stem.with_suffix(".png"))
            stem.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return per_caption * len(captions())


def _draw(pen: object, shape: str, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)  # type: ignore[attr-defined]
    elif shape == "square":
        pen.rectangle(box, fill=colour)  # type: ignore[attr-defined]
    else:
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=colour)  # type: ignore[attr-defined]
