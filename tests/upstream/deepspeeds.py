"""An environment with DeepSpeed, and processes in it. KOHYA_DEEPSPEED_PYTHON names its Python."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.upstream.rig import BUNDLE

TOY = Path(__file__).with_name("zero_toy.py")
_ports = itertools.count(29700 + os.getpid() % 200)


def python() -> Path:
    """The Python that has DeepSpeed; skips the test where there is none."""
    named = os.environ.get("KOHYA_DEEPSPEED_PYTHON")
    if not named:
        pytest.skip("needs DeepSpeed: set KOHYA_DEEPSPEED_PYTHON to a Python that has it")
    return Path(named)


def variables() -> dict[str, str]:
    """The surroundings of its processes."""
    return {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "KOHYA_EXT_SOURCE": str(BUNDLE),
    }


def launcher(ranks: int) -> list[str]:
    """The words that start so many processes of what follows."""
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(next(_ports))]


def toy(ranks: int, folder: Path, stage: int, first: int, last: int, **more: Any) -> None:
    """Train the toy from batch `first` to `last`; what it has seen is in `folder`."""
    config: dict[str, Any] = {"zero_optimization": {"stage": stage, **more.pop("zero", {})}, **more.pop("config", {})}
    job = {"folder": str(folder), "config": config, "first": first, "last": last, "args": more.pop("args", {}), **more}
    done = subprocess.run(
        [str(python()), *launcher(ranks), str(TOY), json.dumps(job)],
        env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
