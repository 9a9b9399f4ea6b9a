"""Puts this very copy of kohya_ext into the Python that runs Kohya, and takes it out again.

Nothing else in that environment may move: no dependency is resolved, no index is asked, and the versions of all other
packages are compared before and after. A small register beside the package names the checkouts that use it, so that the
last one to go takes it along.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohya_ext import about
from kohya_ext.errors import ConflictError
from kohya_ext.files.atomic import Owner, give_tree, owner_for, write_atomic
from kohya_ext.files.lock import locked
from kohya_ext.install.environment import Environment, clean_environ, inspect
from kohya_ext.install.wheel import package_files, write_wheel

State = Literal["absent", "same", "other", "editable"]
Action = Literal["installed", "replaced", "unchanged", "removed", "kept", "absent"]

REGISTER = "kohya_ext-checkouts.json"
REGISTER_FORMAT = 1
SECONDS = 600
LOCK_SECONDS = 120.0

# Runs the pip that ships inside Python's ensurepip straight from its wheel, without installing it.
BUNDLED_PIP = """
import ensurepip, pathlib, runpy, sys
folders = [pathlib.Path(ensurepip.__file__).parent / "_bundled", getattr(ensurepip, "_WHEEL_PKG_DIR", None)]
wheels = [wheel for folder in folders if folder for wheel in sorted(pathlib.Path(folder).glob("pip-*.whl"))]
sys.path.insert(0, str(wheels[-1]))
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class PackageResult:
    """What was done to the package in an environment, and one sentence about it."""

    action: Action
    detail: str


@dataclass(frozen=True)
class Register:
    """Which checkouts use the package. ours: we put it there, so the last checkout takes it along."""

    ours: bool
    checkouts: tuple[str, ...]


def state(environment: Environment) -> State:
    """How the package in `environment` compares with this copy. "editable": a developer's link to a source tree."""
    folder = environment.purelib / about.PACKAGE
    infos = sorted(environment.purelib.glob(f"{about.PACKAGE}-*.dist-info"))
    if any(_editable(info) for info in infos):
        return "editable"
    if not folder.is_dir() or not infos:
        return "absent"
    expected = package_files()
    present = {path.relative_to(environment.purelib).as_posix() for path in folder.rglob("*.py")}
    same = present <= expected.keys() and all(
        _content(environment.purelib / name) == data for name, data in expected.items()
    )
    return (
        "same" if same and [info.name for info in infos] == [f"{about.PACKAGE}-{about.VERSION}.dist-info"] else "other"
    )


def install(environment: Environment, checkout: Path) -> PackageResult:
    """Make this copy of the package importable in `environment`, and note that `checkout` uses it. Idempotent.

    Raises ConflictError when the environment cannot be written, has no installer, or the installer fails.
    """
    if state(environment) == "same" and str(checkout) in read_register(environment).checkouts:
        return PackageResult("unchanged", f"{about.NAME} {about.VERSION} is in {environment.place} already")
    if environment.kind == "user-site":
        environment.purelib.mkdir(parents=True, exist_ok=True)
    with locked(environment.purelib, LOCK_SECONDS):
        before = state(environment)
        if before in ("absent", "other"):
            _require_writable(environment)
        known = read_register(environment) if (environment.purelib / REGISTER).exists() else None
        register = read_register(environment, ours_by_default=before == "absent")
        users = tuple(sorted({*register.checkouts, str(checkout)}))
        # first: whatever happens from here on, an uninstall finds the package
        _write_register(environment, Register(register.ours, users))
        try:
            return _put(environment, before)
        except BaseException:
            if before != "absent" or _taken_out(environment):
                _write_register(environment, known)
            raise


def remove(environment: Environment, checkout: Path) -> PackageResult:
    """Note that `checkout` no longer uses the package; take it out when no other does and it was us who put it there.

    Raises ConflictError when the installer fails.
    """
    with locked(environment.purelib, LOCK_SECONDS):
        register = read_register(environment)
        others = tuple(user for user in register.checkouts if user != str(checkout) and Path(user).is_dir())
        if others:
            _write_register(environment, Register(register.ours, others))
            return PackageResult("kept", f"{about.NAME} stays in {environment.place}: {', '.join(others)} uses it")
        present = state(environment)
        if not register.ours or present in ("absent", "editable"):
            _write_register(environment, None)
            why = "it was not in" if present == "absent" else "it was there before us: it stays in"
            return PackageResult(
                "absent" if present == "absent" else "kept", f"{about.NAME}: {why} {environment.place}"
            )
        _require_writable(environment)
        _run(environment, "uninstall")
        _write_register(environment, None)
        _clear_bytecode(environment.purelib / about.PACKAGE)
    return PackageResult("removed", f"{about.NAME} taken out of {environment.place}")


def read_register(environment: Environment, *, ours_by_default: bool = False) -> Register:
    """The register of `environment`; an empty one when there is none or it cannot be read."""
    try:
        content = json.loads((environment.purelib / REGISTER).read_text(encoding="utf-8"))
        return Register(bool(content["ours"]), tuple(str(path) for path in content["checkouts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Register(ours_by_default, ())


def _write_register(environment: Environment, register: Register | None) -> None:
    path = environment.purelib / REGISTER
    with contextlib.suppress(PermissionError):  # a package that somebody else keeps for us: nothing to register
        if register is None:
            path.unlink(missing_ok=True)
            return
        content = {"format": REGISTER_FORMAT, "ours": register.ours, "checkouts": list(register.checkouts)}
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))


def _put(environment: Environment, before: State) -> PackageResult:
    if before == "same":
        return PackageResult("unchanged", f"{about.NAME} {about.VERSION} is in {environment.place} already")
    if before == "editable":
        return PackageResult(
            "unchanged", f"{about.NAME} is linked into {environment.place} from a source tree: left alone"
        )
    owner = owner_for(environment.purelib)
    with tempfile.TemporaryDirectory(prefix="kohya_ext-") as folder:
        _run(environment, "install", write_wheel(Path(folder)))
    _give_to(environment, owner)
    _require_unmoved(environment)
    if before == "other":
        return PackageResult("replaced", f"{about.NAME} {about.VERSION} replaced the copy in {environment.place}")
    return PackageResult("installed", f"{about.NAME} {about.VERSION} installed into {environment.place}")


def _taken_out(environment: Environment) -> bool:
    """After a failed installation: take out what the installer has put in. False when it stays there."""
    if state(environment) != "absent":
        with contextlib.suppress(ConflictError):  # the failure that led here is the one to be reported
            _run(environment, "uninstall")
            _clear_bytecode(environment.purelib / about.PACKAGE)
    return state(environment) == "absent"


def _run(environment: Environment, verb: Literal["install", "uninstall"], wheel: Path | None = None) -> None:
    tool, command = _installer(environment)
    command = [*command, *_arguments(environment, tool, verb, wheel)]
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            env=_installer_environ(environment),
            cwd=os.sep,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConflictError(f"{tool} could not be run for {environment.python}: {error}") from error
    if run.returncode != 0:
        said = "\n  ".join((run.stderr or run.stdout).strip().splitlines()[-5:])
        raise ConflictError(f"{tool} could not {verb} {about.NAME} in {environment.place}:\n  {said}")


def _installer(environment: Environment) -> tuple[Literal["pip", "uv"], list[str]]:
    """The gentlest installer there is: none of them adds anything but our package to the environment."""
    python = str(environment.python)
    uv_fits = environment.kind == "uv" or not environment.has_pip
    if environment.uv is not None and uv_fits and environment.kind != "user-site":  # uv knows no user site
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


def _arguments(environment: Environment, tool: str, verb: str, wheel: Path | None) -> list[str]:
    python = str(environment.python)
    if verb == "uninstall":
        return ["uninstall", "--python", python, about.NAME] if tool == "uv" else ["uninstall", "--yes", about.NAME]
    if tool == "uv":
        flags = ["--break-system-packages"] if environment.externally_managed else []
        return ["install", "--python", python, "--no-deps", "--no-index", "--reinstall", *flags, str(wheel)]
    flags = ["--user"] if environment.kind == "user-site" else []
    common = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--force-reinstall", "--quiet"]
    return ["install", *common, *flags, str(wheel)]


def _installer_environ(environment: Environment) -> Mapping[str, str]:
    """No configuration of the user's may redirect or forbid this; a system Python is one that Kohya really runs in."""
    environ = clean_environ(environment.home)
    environ.update(
        PIP_CONFIG_FILE=os.devnull,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_INPUT="1",
        PIP_ROOT_USER_ACTION="ignore",
        UV_NO_CONFIG="1",
        UV_NO_CACHE="1",
        UV_OFFLINE="1",
        UV_LINK_MODE="copy",
    )
    if environment.externally_managed:
        environ["PIP_BREAK_SYSTEM_PACKAGES"] = "1"
    return environ


def _require_writable(environment: Environment) -> None:
    if not environment.writable:
        owner = owner_for(environment.purelib)
        raise ConflictError(
            f"no permission to write {environment.purelib} (it belongs to user {owner[0] if owner else '?'}): "
            "run as that user or with sudo, or name another Python with --python PATH"
        )


def _require_unmoved(before: Environment) -> None:
    """Raise ConflictError when any other package changed; with no dependency resolved that cannot happen."""
    after = inspect(before.python, home=before.home)
    names = (before.packages.keys() | after.packages.keys()) - {about.NAME}
    moved = [name for name in sorted(names) if before.packages.get(name) != after.packages.get(name)]
    if moved:
        raise ConflictError(
            f"the installer moved other packages of {before.place}, which it must not: {', '.join(moved)}"
        )
    if not after.modules.get(about.PACKAGE):
        raise ConflictError(f"{about.NAME} was installed for {before.python}, which still cannot import it")


def _give_to(environment: Environment, owner: Owner | None) -> None:
    """As root, in an environment that belongs to somebody: our files belong to them as well."""
    if owner is None or owner[0] == os.geteuid():
        return
    purelib, scripts = environment.purelib.resolve(), environment.scripts.resolve()
    for folder in purelib.glob(f"{about.PACKAGE}*"):
        give_tree(folder, owner)
    for name in about.CONSOLE_SCRIPTS:
        give_tree(scripts / name, owner)


def _clear_bytecode(folder: Path) -> None:
    """Remove what an uninstaller leaves of the package folder when it holds nothing but compiled files."""
    if folder.is_dir() and all(path.is_dir() or path.suffix == ".pyc" for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def _editable(info: Path) -> bool:
    try:
        return bool(json.loads((info / "direct_url.json").read_text(encoding="utf-8"))["dir_info"]["editable"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
