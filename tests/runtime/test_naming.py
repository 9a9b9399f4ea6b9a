"""EMA files are named as upstream would name an output called NAME-ema."""

from __future__ import annotations

import argparse

import pytest

from kohya_ext.runtime.naming import args_of_average, file_of_average


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
    assert file_of_average(file, output_name) == expected


def test_args_of_average_leave_the_run_s_own_alone() -> None:
    args = argparse.Namespace(output_name=None, save_state=True)
    changed = args_of_average(args, "epoch")
    assert (changed.output_name, changed.save_state) == ("epoch-ema", False)
    assert (args.output_name, args.save_state) == (None, True)
