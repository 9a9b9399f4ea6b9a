"""Writes our own wheel, and runs the tool that puts it into an environment: uv, pip, or the pip inside ensurepip.

The wheel is a zip of the running package, its data and its metadata. No build tool and no network is needed for it, and
any copy of kohya_ext can put itself into the Python that runs Kohya, from the repository as well as from an installed
wheel. The same content gives the same bytes.

No dependency is resolved, no index is asked, no configuration of the user's is read, and its temporary files go to
a folder of ours, so that a killed one leaves nothing anywhere else.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from kohya_ext.checkout import identity
from kohya_ext.checkout.environment import Environment, clean_environ
from kohya_ext.core import about
from kohya_ext.core.bundle import BUNDLED, FILES, FOLDERS, PACKAGE_DIR, data_dir, data_file
from kohya_ext.core.errors import ConflictError
from kohya_ext.files import lock
from kohya_ext.files.regular import toml_loads

EPOCH = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644 << 16
SKIPPED_FOLDERS = frozenset({"__pycache__", BUNDLED, ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
SKIPPED_SUFFIXES = frozenset({".pyc", ".pyo", ".swp", ".orig", ".rej", ".tmp"})

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


def write_wheel(folder: Path) -> Path:
    """Write the wheel of this very copy of kohya_ext into `folder` and return its path."""
    files = {**package_files(), **_metadata()}
    files[f"{dist_info()}/RECORD"] = _record(files)
    target = folder / f"{about.PACKAGE}-{about.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = FILE_MODE
            archive.writestr(entry, data)
    return target


def dist_info() -> str:
    """The name of the folder of our metadata."""
    return f"{about.PACKAGE}-{about.VERSION}.dist-info"


def package_files() -> dict[str, bytes]:
    """What an installation of this copy holds below site-packages: {posix path: content}, without the metadata."""
    files = {f"{about.PACKAGE}/{path}": data for path, data in _tree(PACKAGE_DIR)}
    inside = f"{about.PACKAGE}/{BUNDLED}"
    for name in FOLDERS:
        files.update((f"{inside}/{name}/{path}", data) for path, data in _tree(data_dir(name)))
    files.update((f"{inside}/{name}", data_file(name).read_bytes()) for name in FILES)
    return dict(sorted(files.items()))


def _tree(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        wanted = not SKIPPED_FOLDERS.intersection(relative.parts) and path.suffix not in SKIPPED_SUFFIXES
        if wanted and not path.name.endswith("~") and path.is_file():
            yield relative.as_posix(), path.read_bytes()


def _metadata() -> dict[str, bytes]:
    project = toml_loads(data_file("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wheel = [
        "Wheel-Version: 1.0",
        f"Generator: {about.NAME} {about.VERSION}",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    scripts = ["[console_scripts]", *(f"{name} = {target}" for name, target in project["scripts"].items())]
    licenses = {f"{dist_info()}/licenses/{name}": data_file(name).read_bytes() for name in project["license-files"]}
    return {
        f"{dist_info()}/METADATA": _lines(_headers(project)) + b"\n" + data_file(project["readme"]).read_bytes(),
        f"{dist_info()}/WHEEL": _lines(wheel),
        f"{dist_info()}/entry_points.txt": _lines(scripts),
        f"{dist_info()}/top_level.txt": _lines([about.PACKAGE]),
        **licenses,
    }


def _headers(project: Mapping[str, Any]) -> list[str]:
    """The core metadata that setuptools makes of the same table (without the readme)."""
    headers = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {about.VERSION}",
        f"Summary: {project['description']}",
        f"Author: {', '.join(author['name'] for author in project['authors'])}",
        f"License-Expression: {project['license']}",
        *(f"Project-URL: {name}, {address}" for name, address in project["urls"].items()),
        f"Keywords: {','.join(project['keywords'])}",
        *(f"Classifier: {classifier}" for classifier in project["classifiers"]),
        f"Requires-Python: {project['requires-python']}",
        "Description-Content-Type: text/markdown",
        *(f"License-File: {name}" for name in project["license-files"]),
        *(f"Requires-Dist: {requirement}" for requirement in project["dependencies"]),
    ]
    for extra, requirements in project["optional-dependencies"].items():
        headers.append(f"Provides-Extra: {extra}")
        headers += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
    return headers


def _record(files: Mapping[str, bytes]) -> bytes:
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        quoted = f'"{name}"' if "," in name else name
        rows.append(f"{quoted},sha256={digest},{len(data)}")
    return _lines([*rows, f"{dist_info()}/RECORD,,"])


def _lines(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8")


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
        raise ConflictError(f"{tool} could not install {about.NAME} in {environment.place}:\n  {said}")


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
        f"{environment.python} has no pip, and neither uv nor ensurepip is available to install a package. "
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
