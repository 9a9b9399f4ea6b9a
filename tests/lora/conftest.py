"""A base and a tuned SDXL of a few thousand weights, as single files."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.lora import models


@pytest.fixture
def base_weights() -> dict[str, Tensor]:
    return models.random_weights(models.sdxl())


@pytest.fixture
def pair(tmp_path: Path, base_weights: dict[str, Tensor]) -> tuple[Path, Path]:
    tuned = models.changed(base_weights)
    return models.save(base_weights, tmp_path / "base.safetensors"), models.save(tuned, tmp_path / "tuned.safetensors")
