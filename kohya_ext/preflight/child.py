"""The process that runs a script for a preflight: the checkout's own Python, in a folder that goes when it ends.

kohya_ext need not be installed there, nor may the Python that runs us show it our packages: the child loads our files
by their path.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kohya_ext.checkout import identity
from kohya_ext.checkout.environment import clean_environ
from kohya_ext.core.bundle import PACKAGE_DIR
from kohya_ext.core.errors import ConflictError

SECONDS = 900
TAIL = 4000  # characters of what the script printed
REPORT = "report.json"
_LOAD = """
import sys, importlib.util
spec = importlib.util.spec_from_file_location(
    "kohya_ext", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["kohya_ext"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from kohya_ext.tracing.main import run
run(sys.argv[2])
"""


@dataclass(frozen=True)
class Request:
    """What the child is to do.

    commands: words of each script, its file first; all but the last are preparation. until: a milestone of
    `kohya_ext.tracing.milestones`. root: the checkout. directory: where scripts run. paths: what is importable.
    images: a folder of stand-ins. unknown_models: files whose shapes nobody knows. activate: load our hooks where the
    checkout does not. deepspeed: the run uses it.
    """

    commands: list[list[str]]
    until: str
    root: str
    directory: str
    paths: list[str]
    images: str
    unknown_models: list[str] = field(default_factory=list)
    activate: bool = False
    deepspeed: bool = False


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder for one preflight."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="kohya-ext-preflight-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ConflictError(f"no temporary folder can be made: {error.strerror or error}") from error
    with folder as name, _ended_by_sigterm():
        yield Path(name).resolve()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """While this lasts SIGTERM ends this process by way of its exits: what is temporary goes, and so does a child."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_child(python: Path, request: Request, folder: Path, *, seconds: float = SECONDS) -> dict[str, Any]:
    """Run the scripts and read what was seen.

    Args:
        python: the interpreter of the checkout's environment.
        request: what to do.
        folder: of `workplace`.
        seconds: after which it is stopped.

    Returns:
        The child's report; with `error` where it could not write one.
    """
    file = folder / "request.json"
    file.write_text(json.dumps(asdict(request)), encoding="utf-8")
    command = [str(python), "-c", _LOAD, str(PACKAGE_DIR), str(file)]
    _give(folder, python)
    try:
        ended = identity.run(python, command, _environ(folder), home=str(folder), seconds=seconds)
    except subprocess.TimeoutExpired:
        return _failed("timeout", f"it had not finished after {seconds:.0f} s", "")
    said = (ended.stdout + "\n" + ended.stderr)[-TAIL:]
    try:
        report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _failed("died", identity.cause(ended.stderr) or f"exit code {ended.returncode}", said)
    return {**report, "said": said}


def _failed(kind: str, message: str, said: str) -> dict[str, Any]:
    error = {"type": kind, "message": message, "where": "", "code": ""}
    return {"reached": None, "error": error, "log": [], "notes": [], "said": said}


def _give(folder: Path, python: Path) -> None:
    """Where the Python runs as another user, the folder is that user's."""
    who = identity.of_interpreter(python)
    if who is None:
        return
    for top, names, files in os.walk(folder):
        for name in (".", *names, *files):
            os.chown(Path(top) / name, who.uid, who.gid, follow_symlinks=False)


def _environ(folder: Path) -> Mapping[str, str]:
    """Our variables; homes and caches are in the folder, but what Hugging Face has fetched before can be read."""
    environ = clean_environ()
    found = environ.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")  # noqa: PTH111, PTH118
    places = ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_CACHE_DIR")
    shown = os.environ.get("PYTHONPATH")  # a run that is started from here would see it, too
    return {
        **environ,
        **({"PYTHONPATH": shown} if shown else {}),
        **dict.fromkeys((*places, "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"), str(folder)),
        "HF_HOME": found if os.path.isdir(found) else str(folder),  # noqa: PTH112 - may be any text
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
    }
