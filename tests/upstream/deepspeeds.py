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
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(port())]


def port() -> int:
    """One that no other run of these tests uses."""
    return next(_ports)


def made(folder: Path) -> Path:
    """The folder, which is there then."""
    folder.mkdir(parents=True)
    return folder


def job(folder: Path, stage: int, first: int, last: int, **more: Any) -> dict[str, Any]:
    """One thing for the toy to do: train from batch `first` to `last`; what it has seen will be in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"zero_optimization": {"stage": stage, **more.pop("zero", {})}, **more.pop("config", {})}
    return {"folder": str(folder), "config": config, "first": first, "last": last, **more}


def toy(ranks: int, *jobs: dict[str, Any], fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Start the toy once for all these jobs: importing DeepSpeed takes longer than they do."""
    done = subprocess.run(
        [str(python()), *launcher(ranks), str(TOY), json.dumps(jobs)],
        env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    assert fails or done.returncode == 0, done.stdout[-4000:]
    return done


def on_machines(count: int, words: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """One process on each of several machines, of which this one plays all: each has a launcher of its own."""
    together = ["-m", "torch.distributed.run", "--nnodes", str(count), "--nproc_per_node", "1"]
    together += ["--master_addr", "127.0.0.1", "--master_port", str(port())]
    started = [
        subprocess.Popen(
            [str(python()), *together, "--node_rank", str(rank), *words],
            env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, output)
        for process, output in zip(started, outputs, strict=True)
    ]
