"""Runs the tool that puts our wheel into an environment: uv, its own pip, or the pip inside Python's ensurepip.

No dependency is resolved, no index is asked, no configuration of the user's is read, and its temporary files go to
a folder of ours, so that a killed one leaves nothing anywhere else.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from kohya_ext.checkout import identity
from kohya_ext.checkout.environment import Environment, clean_environ
from kohya_ext.core.about import NAME
from kohya_ext.core.errors import ConflictError
from kohya_ext.files import lock

SECONDS = 600
UMASK = 0o022  # whoever runs the installer: who runs Kohya must be able to read what it puts there

# Runs the pip that ships inside Python's ensurepip straight from its wheel, without installing it.
BUNDLED_PIP = """
import ensurepip, pathlib, runpy, sys
folders = [pathlib.Path(ensurepip.__file__).parent / "_bundled", getattr(ensurepip, "_WHEEL_PKG_DIR", None)]
wheels = [wheel for folder in folders if folder for wheel in sorted(pathlib.Path(folder).glob("pip-*.whl"))]
sys.path.insert(0, str(wheels[-1]))
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def run(environment: Environment, wheel: Path, scratch: Path) -> None:
    """Install `wheel`. scratch: a folder for temporary files. Raises ConflictError with the tool's own words."""
    tool, command = chosen(environment)
    command = [*command, *arguments(environment, tool, wheel)]
    try:
        done = identity.run(
            environment.python,
            command,
            environ(environment, scratch),
            home=environment.home,
            seconds=SECONDS,
            umask=UMASK,
            # when we are killed and the tool is not, nobody shall repair what it is still writing
            **lock.handed_on(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConflictError(f"{tool} could not be run for {environment.python}: {error}") from error
    if done.returncode != 0:
        said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ConflictError(f"{tool} could not install {NAME} in {environment.place}:\n  {said}")


def chosen(environment: Environment) -> tuple[Literal["pip", "uv"], list[str]]:
    """The gentlest installer there is: none of them adds anything but our package to the environment.

    Raises ConflictError when there is none.
    """
    python = str(environment.python)
    uv_fits = environment.kind == "uv" or not environment.has_pip
    uv_fits = uv_fits and environment.kind != "user-site"  # uv knows no user site
    if environment.uv is not None and uv_fits and _within_reach(environment.uv, environment.python):
        return "uv", [str(environment.uv), "pip"]
    if environment.has_pip:
        return "pip", [python, "-m", "pip"]
    if environment.has_ensurepip:
        return "pip", [python, "-c", BUNDLED_PIP]
    if importlib.util.find_spec("pip") is not None:
        return "pip", [sys.executable, "-m", "pip", "--python", python]
    raise ConflictError(
        f"{environment.python} has no pip, and neither uv nor ensurepip is there to install a package with. "
        f"Put uv on PATH, or install pip into {environment.place}, and run the installer again"
    )


def _within_reach(tool: Path, python: Path) -> bool:
    """Whether the user that `python` is started as can start `tool`: root's own may lie where others may not look."""
    if identity.of_interpreter(python) is None:
        return True
    real = tool.resolve()
    return all(path.stat().st_mode & 0o001 for path in (real, *real.parents))


def arguments(environment: Environment, tool: str, wheel: Path) -> list[str]:
    """What follows the tool's name: this wheel, into this environment, and nothing else."""
    if tool == "uv":
        flags = ["--break-system-packages"] if environment.externally_managed else []
        python = str(environment.python)
        return ["install", "--python", python, "--no-deps", "--no-index", "--reinstall", *flags, str(wheel)]
    flags = ["--user"] if environment.kind == "user-site" else []
    common = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--force-reinstall", "--quiet"]
    return ["install", *common, *flags, str(wheel)]


def environ(environment: Environment, scratch: Path) -> Mapping[str, str]:
    """No configuration of the user's may redirect or forbid this; a system Python is one that Kohya really runs in."""
    found = clean_environ(environment.home)
    found.update(
        PIP_CONFIG_FILE=os.devnull,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_INPUT="1",
        PIP_ROOT_USER_ACTION="ignore",
        UV_NO_CONFIG="1",
        UV_NO_CACHE="1",
        UV_OFFLINE="1",
        UV_LINK_MODE="copy",
        TMPDIR=str(scratch),
    )
    if environment.externally_managed:
        found["PIP_BREAK_SYSTEM_PACKAGES"] = "1"
    return found
