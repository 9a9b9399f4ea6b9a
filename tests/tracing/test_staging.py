"""What is replaced in the installed library, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from kohya_ext.tracing.staging import _without_vae


def loader(module: str) -> Any:
    def load_vae() -> str:
        return "its own"

    load_vae.__module__ = module
    return load_vae


def test_the_vae_of_a_preparation_step_has_a_stand_in() -> None:
    made = _without_vae(loader("library.model_util"))
    assert made is not None
    assert made("file.safetensors").to("cpu", dtype=None).anything() is not None


def test_the_vae_that_sd3_trains_with_is_its_own() -> None:
    assert _without_vae(loader("library.sd3_utils")) is None
