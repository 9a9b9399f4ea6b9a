"""Starts real Kohya GUIs.

KOHYA_GUI_RIG is a folder with `trees/NAME` (checkouts of kohya_ss with their training code), `venv/NAME` (environments
that start them) and `assets/` (a small model and images); KOHYA_RIG one whose `shim/` goes on PYTHONPATH, if set.
KOHYA_GUI_PATCH is a folder that goes before it, with a `sitecustomize.py` for a machine whose load gradio cannot stand.
The browser is chromium (KOHYA_BROWSER, else the one on PATH), driven by the package `playwright`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

BUNDLE = Path(__file__).resolve().parents[2]
STARTS_WITHIN = 240.0


@dataclass(frozen=True)
class Era:
    """One release with the environment that runs it. gradio: the major version there. config: its config.toml.

    script: what starts the GUI.
    """

    revision: str
    tree: str
    venv: str
    gradio: int
    config: str = ""
    flags: tuple[str, ...] = ()
    script: str = "kohya_gui.py"


ERAS = {
    "v22.3.1": Era("v22.3.1", "kohya_ss-v22", "gui22", 3),
    "v24.1.7": Era("v24.1.7", "kohya_ss-v24", "gui24", 4),
    "v25.2.1": Era("v25.2.1", "kohya_ss-v25", "gui25", 5, flags=("--noverify",)),
    "v26.0.0": Era("v26.0.0", "kohya_ss-v26", "gui26", 5, flags=("--noverify",)),
    "v26.0.0-gradio6": Era(
        "v26.0.0", "kohya_ss-v26", "gui26g6", 6, config="[basic]\nlr_warmup = 0\n", flags=("--noverify",)
    ),
    "master": Era("master", "kohya_ss-master", "gui26g6", 6, flags=("--noverify",)),
}

SECOND = Era("feat/gui-v2-foundation", "kohya_ss-v2", "guiv2", 5, script="kohya_gui_v2.py")


def rig_folder() -> Path:
    return Path(os.environ["KOHYA_GUI_RIG"])


def require(era: Era, *, browser: bool = True) -> None:
    """Skips the test where the machine has no such GUI or no browser."""
    if not os.environ.get("KOHYA_GUI_RIG"):
        pytest.skip("needs real GUIs: set KOHYA_GUI_RIG")
    if browser:
        pytest.importorskip("playwright")
    for place in (rig_folder() / "trees" / era.tree, rig_folder() / "venv" / era.venv):
        if not place.exists():
            pytest.skip(f"the rig has no {place.name}")
    if browser and browser_program() is None:
        pytest.skip("no chromium: set KOHYA_BROWSER")


def browser_program() -> str | None:
    return os.environ.get("KOHYA_BROWSER") or shutil.which("chromium")


def python_of(era: Era) -> Path:
    return rig_folder() / "venv" / era.venv / "bin" / "python"


def environ_of(era: Era, tree: Path) -> dict[str, str]:
    """What the GUI runs with: its own programs first, the training code and our package importable, no GPU."""
    shim = [f"{os.environ['KOHYA_RIG']}/shim"] if os.environ.get("KOHYA_RIG") else []
    patch = [folder] if (folder := os.environ.get("KOHYA_GUI_PATCH")) else []
    paths = [*patch, *shim, str(BUNDLE), *([str(tree)] if era.gradio == 3 else [])]
    return {
        **os.environ,
        "PATH": f"{python_of(era).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "RIG_TINY": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass
class Server:
    """A GUI that runs. log: everything it prints, its training included."""

    era: Era
    tree: Path
    log: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def printed(self, start: int = 0) -> str:
        """What was printed since it had printed `start` bytes."""
        return self.log.read_bytes()[start:].decode(errors="replace")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


def start(era: Era, tree: Path, log: Path, programs: Path) -> Server:
    """Starts the GUI of a checkout, the folder `programs` first on PATH.

    Its own check of the port may fail while the machine is busy: five attempts.
    """
    for _ in range(5):
        port = free_port()
        environ = environ_of(era, tree)
        environ["PATH"] = f"{programs}{os.pathsep}{environ['PATH']}"
        command = [
            str(python_of(era)),
            era.script,
            "--headless",
            "--listen",
            "127.0.0.1",
            "--server_port",
            str(port),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *era.flags], cwd=tree, env=environ, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        server = Server(era, tree, log, port, process)
        deadline = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < deadline and process.poll() is None:
            if "To create a public link" in server.printed():
                return server
            time.sleep(0.5)
        if process.poll() is None:
            server.stop()
    raise AssertionError(f"the GUI did not start: {server.printed()[-3000:]}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def plain_copy(era: Era, folder: Path, ignored: Callable[..., set[str]] | None = None) -> Path:
    """A copy of the rig's checkout, with what its user would write into config.toml."""
    tree = Path(shutil.copytree(rig_folder() / "trees" / era.tree, folder, symlinks=True, ignore=ignored))
    if era.config:
        (tree / "config.toml").write_text(era.config)
    return tree


def installed_copy(era: Era, folder: Path) -> Path:
    """A copy of the rig's checkout with our bundle installed by our own command."""
    ignored = shutil.ignore_patterns("__pycache__", ".kohya_ext", "user_presets")
    tree = plain_copy(era, folder, ignored)
    install_into(tree, python_of(era))
    return tree


def install_into(tree: Path, python: Path) -> None:
    """Our bundle, by our own command, for the environment of `python`; no package: `environ_of` makes it importable."""
    words = [str(tree), "--python", str(python), "--no-package", "--yes"]
    command = [sys.executable, "-m", "kohya_ext", "install", *words]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
