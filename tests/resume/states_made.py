"""States as an exact run leaves them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kohya_ext.resume.record import Position, Record, RunStart, write

PYTHON = "/venv/bin/python"


def made(step: int, saved_at: float = 0.0, *, name: str | None = "dog", **changes: Any) -> Record:
    """The record of a state after `step` of 10 steps."""
    values: dict[str, Any] = {
        "run": "r",
        "saved_at": saved_at or float(step),
        "version": "0",
        "position": Position(epoch=0, batches=step, over=step == 10, step=step, total=10, first_step=0),
        "launch": RunStart(
            PYTHON, ["sdxl_train.py", "--seed=1", "--resume", "old"], "/kohya", {"OMP_NUM_THREADS": "1"}
        ),
        "data": {"seed": 1},
        "settings": {"output_name": name},
        "random": {},
        "losses": {},
    }
    return Record(**{**values, **changes})


def save(outputs: Path, step: int, record: Record | None = None, *, name: str = "dog") -> Path:
    """A complete state in `outputs`."""
    folder = outputs / f"{name}-step{step:08d}-state"
    (folder / "inner").mkdir(parents=True)
    (folder / "optimizer.bin").write_bytes(bytes(step))
    (folder / "inner" / "model.safetensors").write_bytes(b"model")
    write(record or made(step, name=name), folder)
    return folder
