"""EMA files are named as upstream would name an output called NAME-ema."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kohya_ext.runtime.ema_outputs import args_of_average, file_of_average, outlived_by


@pytest.mark.parametrize(
    ("file", "output_name", "expected"),
    [
        ("out/dog.safetensors", "dog", "out/dog-ema.safetensors"),
        ("out/dog-step00000002.safetensors", "dog", "out/dog-ema-step00000002.safetensors"),
        ("out/dog-000003.safetensors", "dog", "out/dog-ema-000003.safetensors"),
        ("out/last.safetensors", None, "out/last-ema.safetensors"),
        ("out/at-step00000002.ckpt", None, "out/at-ema-step00000002.ckpt"),
        ("out/epoch-000003.pt", None, "out/epoch-ema-000003.pt"),
        ("out/dog-000003.safetensors", "dog-000003", "out/dog-000003-ema.safetensors"),
        ("out/sdxl v1.5 dog.safetensors", "sdxl v1.5 dog", "out/sdxl v1.5 dog-ema.safetensors"),
    ],
)
def test_file_of_average(file: str, output_name: str | None, expected: str) -> None:
    assert file_of_average(file, output_name) == str(Path(expected))


def test_args_of_average_leave_the_run_s_own_alone() -> None:
    args = argparse.Namespace(output_name=None, save_state=True)
    changed = args_of_average(args, "epoch")
    assert (changed.output_name, changed.save_state) == ("epoch-ema", False)
    assert (args.output_name, args.save_state) == (None, True)


@pytest.mark.parametrize(
    ("file", "settings", "expected"),
    [
        # the example in upstream's own comment: every 10, the last 30: at step 50 goes step 10
        ("out/dog-step00000050.safetensors", {"save_last_n_steps": 30, "save_every_n_steps": 10}, 10),
        ("out/dog-step00000050.safetensors", {"save_last_n_steps": 25, "save_every_n_steps": 10}, 20),
        ("out/dog-step00000030.safetensors", {"save_last_n_steps": 30, "save_every_n_steps": 10}, None),
        ("out/dog-000009.safetensors", {"save_last_n_epochs": 2, "save_every_n_epochs": 3}, 3),
        ("out/dog-000003.safetensors", {"save_last_n_epochs": 2, "save_every_n_epochs": 3}, None),
        ("out/dog-000009.safetensors", {"save_last_n_steps": 30, "save_every_n_steps": 10}, None),
        ("out/dog-000009.safetensors", {"save_last_n_epochs": None, "save_every_n_epochs": 3}, None),
        ("out/dog.safetensors", {"save_last_n_epochs": 2, "save_every_n_epochs": 3}, None),
    ],
)
def test_what_a_new_file_outlives(file: str, settings: dict[str, int | None], expected: int | None) -> None:
    found = outlived_by(file, "dog", argparse.Namespace(**settings))
    number = None if expected is None else (f"{expected:06d}" if "epochs" in str(settings) else f"step{expected:08d}")
    assert found == (None if number is None else str(Path("out", f"dog-{number}.safetensors")))
