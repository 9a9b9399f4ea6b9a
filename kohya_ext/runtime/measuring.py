"""Each run leaves a line about its peak of memory and its seconds a step; `kohya-ext preflight` reads it.

Nothing is computed for it: the clock is read once a batch, and CUDA keeps the peaks by itself.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.core.about import MANIFEST, VERSION
from kohya_ext.runtime.run import is_main_process, run
from kohya_ext.spec.measurements import FILE_NAME, digest

SETTLED = 5  # batches before the time is taken: kernels are chosen and compiled in the first ones
LARGEST = 1 << 20  # bytes: a longer file gets no further lines


@dataclass
class MeasuredRun:
    """settings: their digest. accumulated: batches of an optimizer step. script: its file's name.

    batches: backward passes so far. began, ended: seconds on the clock at the first that counts, and at the last.
    """

    settings: str
    accumulated: int
    file: Path
    script: str
    batches: int = 0
    began: float = 0.0
    ended: float = 0.0

    def tick(self) -> None:
        """A backward pass is over."""
        self.batches += 1
        self.ended = time.monotonic()
        if self.batches == SETTLED:
            self.began = self.ended

    def line(self) -> dict[str, Any]:
        """What is written: bytes, and seconds of an optimizer step; None for what is not known."""
        timed = self.batches - SETTLED
        return {
            "settings": self.settings,
            "script": self.script,
            "version": VERSION,
            "date": time.strftime("%Y-%m-%d"),
            "batches": self.batches,
            "seconds_per_step": (self.ended - self.began) / timed * self.accumulated if timed > 0 else None,
            "out_of_memory": _out_of_memory(),
            **_peaks(),
        }

    def write(self) -> None:
        """Append the line. A measurement is worth no error at the end of a run."""
        with contextlib.suppress(Exception):
            if self.batches and not (self.file.is_file() and self.file.stat().st_size > LARGEST):
                with self.file.open("a", encoding="utf-8") as opened:
                    opened.write(json.dumps(self.line()) + "\n")

    def finish(self) -> None:
        """Another training begins in this process: the line is written now, and that one's peaks are its own."""
        atexit.unregister(self.write)
        self.write()
        cuda = _on_a_card()
        if cuda is not None:
            cuda.reset_peak_memory_stats()


def begin(args: argparse.Namespace, accelerator: Any) -> MeasuredRun | None:
    """Measure the run of this accelerator, where the checkout has a record of us; None where it has not.

    Args:
        args: the script's.
        accelerator: gets a `backward` that ticks.
    """
    folder, backward = _records(), getattr(accelerator, "backward", None)
    if folder is None or backward is None or not is_main_process():
        return None
    script = Path(sys.argv[0]).name
    settings = digest(script, run.given or vars(args))  # as they were given: scripts change some as they go
    accumulated = max(int(getattr(args, "gradient_accumulation_steps", 1) or 1), 1)
    measurement = MeasuredRun(settings, accumulated, folder / FILE_NAME, script)

    @functools.wraps(backward)
    def backward_and_tick(*given: Any, **named: Any) -> Any:
        result = backward(*given, **named)
        measurement.tick()
        return result

    accelerator.backward = backward_and_tick
    atexit.register(measurement.write)
    run.undoing.append(measurement.finish)
    return measurement


def _records() -> Path | None:
    """The folder of our records in the checkout whose script this is: its own, or that of the GUI around it."""
    with contextlib.suppress(OSError, IndexError):
        script = Path(sys.argv[0]).resolve()
        return next(((top / MANIFEST).parent for top in script.parents[:2] if (top / MANIFEST).is_file()), None)
    return None


def _on_a_card() -> Any:
    """`torch.cuda` where this process has used a card, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _peaks() -> dict[str, Any]:
    cuda = _on_a_card()
    if cuda is None:
        return {"device": "cpu", "peak_allocated_bytes": None, "peak_reserved_bytes": None}
    return {
        "device": cuda.get_device_name(),
        "peak_allocated_bytes": cuda.max_memory_allocated(),
        "peak_reserved_bytes": cuda.max_memory_reserved(),
    }


def _out_of_memory() -> bool:
    """Whether the error that ends this process is the card's memory."""
    kind = getattr(sys, "last_type", None)
    return kind is not None and kind.__name__ == "OutOfMemoryError"
