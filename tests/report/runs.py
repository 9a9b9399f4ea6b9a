"""A finished run's output folder, as a run with validation leaves it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from kohya_ext.tensors.header import TensorEntry, encode
from kohya_ext.validation import records
from kohya_ext.validation.records import EMA, RAW, Row, cells


def make(folder: Path, name: str = "dog", *, rising: bool = True) -> Path:
    """Validation is lowest after step 4, or falls to the end; the training loss falls."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for epoch, loss in enumerate([1.0, 0.8, 0.6, 0.7] if rising else [1.0, 0.8, 0.6, 0.5]):
        for weights, value in ((RAW, loss), (EMA, loss + 0.05)):
            if epoch or weights == RAW:
                train = 0.9 - epoch * 0.2 if epoch else math.nan
                rows.append(
                    Row(
                        2 * epoch,
                        epoch,
                        weights,
                        value,
                        value - 0.1,
                        value + 0.1,
                        train,
                        4,
                        2,
                        1.5,
                        10.0 * epoch + 1.5,
                        3 << 30,
                    )
                )
    records.write(folder / f"{name}{records.VALIDATIONS}", records.COLUMNS, map(cells, rows))
    losses = [(step, 1, 1 / step) for step in range(1, 7) for _ in (0, 1)]
    records.write(folder / f"{name}{records.LOSSES}", records.LOSS_COLUMNS, losses)
    said = records.settings_of("sdxl_train.py", {"learning_rate": 1e-5, "output_name": "<b>"})
    (folder / f"{name}{records.SETTINGS}").write_text(json.dumps(said))
    save(folder / f"{name}-000001.safetensors", {"ss_epoch": "1"})
    best = {
        "kohya_ext_best_file": f"{name}-000002.safetensors",
        "kohya_ext_best_step": "4",
        "kohya_ext_best_weights": RAW,
    }
    save(folder / f"{name}-best.safetensors", best)
    return folder


def draw(path: Path, colour: str = "red") -> None:
    """An image."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


def save(path: Path, metadata: dict[str, str]) -> None:
    """A model of one number."""
    path.write_bytes(encode({"a": TensorEntry("F32", (1,), 0, 4)}, metadata) + bytes(4))
