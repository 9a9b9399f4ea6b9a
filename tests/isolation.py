"""The machine on which tests run is out of their sight, and what is not theirs out of their reach.

`begin` makes a folder of this session's own with an empty home, an empty temporary folder and an empty "machine" (no
processes, none of the templates' locations) and points every environment variable that leads anywhere to it. `watch`
starts the guard (tests/guard/sitecustomize.py), which children inherit.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest


def _guard() -> Any:
    """The guard's module; the one that watches already, in a session that a test has started."""
    watching = sys.modules.get("sitecustomize")
    if hasattr(watching, "TrespassError"):
        return watching
    from tests.guard import sitecustomize

    return sitecustomize


guard = _guard()

HOMES = ("HOME", "USERPROFILE")
BELOW_HOME = {
    "XDG_CONFIG_HOME": ".config",
    "XDG_CACHE_HOME": ".cache",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
    "APPDATA": "AppData/Roaming",
    "LOCALAPPDATA": "AppData/Local",
    "HF_HOME": ".cache/huggingface",
    "TORCH_HOME": ".cache/torch",
    "TORCHINDUCTOR_CACHE_DIR": ".cache/inductor",
    "TRITON_CACHE_DIR": ".cache/triton",
    "MPLCONFIGDIR": ".config/matplotlib",
}
TEMPROOT = "PYTEST_DEBUG_TEMPROOT"
TEMPORARY = ("TMPDIR", "TEMP", "TMP")

# These say where an installation, an environment or a configuration lies, or what a command does.
STRANGE = ("VIRTUAL_ENV", "WORKSPACE", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "DATA_DIRECTORY")
STRANGE_PREFIXES = (
    "CONDA",
    "GIT_",
    "PIP_",
    "UV_",
    "HF_",
    "HUGGING",
    "TRANSFORMERS_",
    "PROVISIONING",
    "RUNPOD_",
    "VAST_",
)

# Where tests on real trees (marked upstream) are told to put what they make.
GIVEN = (
    "RIG_WORK",
    "KOHYA_GUI_RIG",
    "KOHYA_EXT_REPORT",
    "KOHYA_EXT_EMA_RESULTS",
    "KOHYA_GUI_IMAGES",
    "KOHYA_EXT_FUZZ_LOG",
)

REPOSITORY = Path(__file__).resolve().parents[1]


class Isolation:
    """The session's own folder. refused: what the guard refused since the last question."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kohya_ext-tests-")).resolve()
        self.folder.chmod(0o755)  # some tests act as another user, in a temporary folder that is open to all
        self._log = self.folder / "refused.log"
        self._read = 0

    def begin(self) -> None:
        """Change the environment variables of this process."""
        self._usual = tempfile.gettempdir()
        for name in list(os.environ):
            if name in STRANGE or name.startswith(STRANGE_PREFIXES):
                del os.environ[name]
        for name in ("home", "temporary", "machine/proc"):
            (self.folder / name).mkdir(parents=True)
        os.environ |= dict.fromkeys(HOMES, str(self.folder / "home"))
        os.environ |= dict.fromkeys(TEMPORARY, str(self.folder / "temporary"))
        os.environ |= {name: str(self.folder / "home" / below) for name, below in BELOW_HOME.items()}
        tempfile.tempdir = None
        os.environ |= {
            "KOHYA_EXT_MACHINE": str(self.folder / "machine"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(guard.__file__).parent),
            guard.LOG: str(self._log),
        }

    def watch(self, factory: pytest.TempPathFactory) -> None:
        """From now on nothing is written but below our folder, pytest's, and what the caller of the tests named."""
        with pytest.MonkeyPatch.context() as patch:
            if not os.environ.get(TEMPROOT):  # where a developer looks for what the last sessions left
                patch.setenv(TEMPROOT, self._usual)
            pytests_folder = factory.getbasetemp()
        given = [os.environ[name] for name in GIVEN if os.environ.get(name)]
        os.environ[guard.ALLOWED] = os.pathsep.join([str(self.folder), str(pytests_folder), *given])
        guard.watch()

    def refused(self) -> list[str]:
        """What was refused since the last question, in this process and in its children."""
        try:
            if self._log.stat().st_size == self._read:
                return []
            with self._log.open(encoding="utf-8") as log:
                log.seek(self._read)
                lines = log.read().splitlines()
                self._read = log.tell()
        except FileNotFoundError:
            return []
        return lines

    def rest(self) -> None:
        """The tests are over: pytest writes its cache."""
        guard.rest()

    def end(self) -> None:
        """Remove the session's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
