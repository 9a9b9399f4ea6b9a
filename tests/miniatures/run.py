"""Runs training scripts of miniatures, each in a process of its own.

Importing torch and accelerate takes longer than a miniature's training. So one process imports them once and forks for
every run; neither Kohya's modules nor ours are loaded before the fork, so a run sees what a fresh Python would.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Run:
    """What one training run left: its exit code, all it printed, and its output folder."""

    code: int
    log: str
    out: Path

    def tensors(self, name: str) -> dict[str, Any]:
        """The tensors of `NAME.safetensors` in the output folder."""
        from safetensors.torch import load_file

        return dict(load_file(self.out / f"{name}.safetensors"))

    def metadata(self, name: str) -> dict[str, str]:
        from safetensors import safe_open

        with safe_open(self.out / f"{name}.safetensors", framework="pt") as file:
            return dict(file.metadata() or {})

    def models(self) -> list[str]:
        """The saved models' names, sorted, without their suffix."""
        return sorted(path.stem for path in self.out.glob("*.safetensors"))


class Launcher:
    """The process that forks. Closing it ends it."""

    def __init__(self) -> None:
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        environ |= {"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def run(
        self,
        script: Path,
        flags: list[str],
        out: Path,
        *,
        without_package: bool = False,
        site: Path | None = None,
        vanishing: Path | None = None,
    ) -> Run:
        """Trains with `flags`; --output_dir is `out`.

        without_package: as if kohya_ext were not installed. site: a folder that has the kohya_ext of this run, instead
        of this repository. vanishing: a folder that is removed before the second optimizer step.
        """
        out.mkdir(parents=True, exist_ok=True)
        log = out / "log.txt"
        flags = [*flags, "--output_dir", str(out)]
        request = {"script": str(script), "flags": flags, "log": str(log), "without_package": without_package}
        request |= {"site": str(site or ""), "vanishing": str(vanishing or "")}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Run(code, log.read_text(encoding="utf-8", errors="replace"), out)

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Answers each request on standard input with the exit code of its run."""
    sys.path.remove(str(Path(__file__).resolve().parent))
    import accelerate.tracking  # noqa: F401
    import PIL.Image  # noqa: F401
    import safetensors.torch  # noqa: F401
    import toml  # noqa: F401
    import torch._dynamo  # noqa: F401  # the first optimizer would import it, for seconds
    import tqdm  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(request: dict[str, Any]) -> None:
    """Turns the forked child into `python SCRIPT FLAGS`. Does not return."""
    import runpy
    import signal
    import traceback

    signal.alarm(TIMEOUT_SECONDS)
    log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    script = Path(request["script"])
    os.chdir(script.parent)
    sys.path.insert(0, str(script.parent))
    sys.argv = [script.name, *request["flags"]]
    if request["without_package"]:
        sys.modules["kohya_ext"] = None  # type: ignore[assignment]  # makes its import fail
    if request["site"]:
        sys.path[:] = [folder for folder in sys.path if folder != str(REPOSITORY)]
        sys.path.insert(1, request["site"])
    if request["vanishing"]:
        _remove_at_second_step(request["vanishing"])
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _remove_at_second_step(folder: str) -> None:
    import shutil

    from torch.optim.optimizer import register_optimizer_step_pre_hook

    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            shutil.rmtree(folder)

    register_optimizer_step_pre_hook(count)


if __name__ == "__main__":
    serve()
