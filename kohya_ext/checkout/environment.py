"""The Python environment that runs a checkout: found, and described without importing anything of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kohya_ext.checkout import identity
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.known_locations import (
    ENVIRONMENTS,
    ENVIRONMENTS_IN_CHECKOUT,
    MACHINE,
    enclosing,
    expand,
    machine,
)
from kohya_ext.checkout.processes import processes_of, running_guis
from kohya_ext.core import shell
from kohya_ext.core.errors import UsageError
from kohya_ext.files.regular import TEXT_LIMIT, NotReadableError, file_fault, read_regular

Kind = Literal["venv", "uv", "conda", "user-site", "system"]

OLDEST = (3, 10)
PROBE = Path(__file__).with_name("probe.py")
PROBE_SECONDS = 60
LANDMARKS = ("torch", "accelerate")
MODULES = (*LANDMARKS, "diffusers", "transformers", "safetensors", "toml", "scipy", "xformers", "gradio", "kohya_ext")
SYSTEM_PYTHONS = ("python3", "python3.11", "python3.10", "python3.12", "python3.13")


@dataclass(frozen=True)
class Environment:
    """A Python and what is installed for it.

    python: its interpreter, not resolved (a virtual environment is known by the path of its link).
    purelib: the folder our package goes to; the user's own site-packages for kind "user-site".
    packages: {normalised name: version}. modules: {name: can be imported} for MODULES and what was asked besides.
    home: HOME for commands in this environment, where it is not our own (a user-site of another user).
    """

    python: Path
    prefix: Path
    version: str
    kind: Kind
    has_pip: bool
    has_ensurepip: bool
    uv: Path | None
    packages: Mapping[str, str]
    modules: Mapping[str, bool]
    purelib: Path
    scripts: Path
    writable: bool
    externally_managed: bool
    home: str | None = None

    @property
    def runs_kohya(self) -> bool:
        """Whether torch and accelerate are there: what tells Kohya's environment from any other Python."""
        return all(self.modules.get(name, False) for name in LANDMARKS)

    @property
    def place(self) -> Path:
        """What to call it to people: the environment's folder, or the user's own site-packages."""
        return self.purelib if self.kind == "user-site" else self.prefix

    def as_json(self) -> dict[str, Any]:
        """The fields that `--json` shows."""
        return {
            "python": str(self.python),
            "version": self.version,
            "kind": self.kind,
            "prefix": str(self.prefix),
            "purelib": str(self.purelib),
            "runs_kohya": self.runs_kohya,
        }


@dataclass(frozen=True)
class FoundEnvironment:
    """The result of a search. how: where it was found. warnings: what the user should know about the choice."""

    environment: Environment
    how: str
    warnings: tuple[str, ...]


def clean_environ(home: str | None = None) -> dict[str, str]:
    """Our environment variables, without those that show another Python our packages or change where pip installs."""
    drop = re.compile(r"^(PYTHON(PATH|HOME|STARTUP|SAFEPATH|EXECUTABLE)|PIP_.*|UV_.*|__PYVENV_LAUNCHER__|VIRTUAL_ENV)$")
    environ = {name: value for name, value in os.environ.items() if not drop.match(name)}
    if home is not None:
        environ["HOME"] = home
    return environ


def inspect(python: Path, *, home: str | None = None, extra_modules: Sequence[str] = ()) -> Environment:
    """What the interpreter `python` (or the environment in the folder `python`) is and has. Takes about 50 ms.

    Raises UsageError when it does not exist, cannot be run, is not a Python, or is older than 3.10.
    """
    path = _interpreter_at(python)
    command = [str(path), "-c", PROBE.read_text(encoding="utf-8"), *MODULES, *extra_modules]
    try:
        run = identity.run(path, command, clean_environ(home), home=home, seconds=PROBE_SECONDS)
        answer = json.loads(run.stdout)
        version = tuple(int(part) for part in answer["version"].split("."))
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path} did not answer within {PROBE_SECONDS} s: it is not a working Python") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"{path} cannot be run{_by(path)}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, KeyError, TypeError):
        said = identity.cause(run.stderr) or identity.cause(run.stdout)
        raise UsageError(f"{path} is not a working Python{f' (it says: {said})' if said else ''}") from None
    if version < OLDEST:
        raise UsageError(f"{path} is Python {answer['version']}; kohya_ext needs Python 3.10 or newer")
    return _environment(path, answer, home)


def _by(python: Path) -> str:
    """As whom `python` is run, where that is not us; for messages."""
    who = identity.of_interpreter(python)
    if who is None:
        return ""
    return f" as user {who.uid}, who owns it (root runs no Python of others; chown -R root makes it root's)"


def _interpreter_at(python: Path) -> Path:
    path = Path(os.path.abspath(python.expanduser()))  # noqa: PTH100 - resolve() would leave the virtual environment
    try:
        return _existing_at(python, path)
    except PermissionError as error:
        raise UsageError(f"{error.filename or path}: no permission to read it; name another Python") from None


def _existing_at(python: Path, path: Path) -> Path:
    if path.is_dir():
        inside = (
            path / "bin" / "python",
            path / "bin" / "python3",
            path / "Scripts" / "python.exe",
            path / "python.exe",
        )
        found = next((candidate for candidate in inside if candidate.exists()), None)
        if found is None:
            raise UsageError(f"{path} has no Python in it: name an interpreter, for example {shell.example_python()}")
        return found
    if not path.exists():
        on_path = shutil.which(str(python)) if python.name == str(python) else None
        if on_path is None:
            raise UsageError(f"{python}: no such file; name a Python interpreter, for example {shell.example_python()}")
        return Path(on_path)
    fault = file_fault(path)
    if fault is not None:
        raise UsageError(f"{path} {fault}: name a Python interpreter, for example {shell.example_python()}")
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path} is not executable: name a Python interpreter, for example {shell.example_python()}")
    return path


def _environment(path: Path, answer: Mapping[str, Any], home: str | None) -> Environment:
    packages: dict[str, list[str]] = answer["packages"]
    usersite = answer["usersite"]
    kind: Kind
    if answer["in_venv"]:
        kind = "uv" if answer["made_by_uv"] else "venv"
    elif answer["conda"]:
        kind = "conda"
    elif usersite and packages.get("torch", ["", ""])[1] == usersite:
        kind = "user-site"
    else:
        kind = "system"
    purelib = Path(answer["purelib"])
    if kind == "system" and usersite and not _writable(purelib):
        kind = "user-site"
    if kind == "user-site":
        purelib = Path(usersite)
    scripts = _user_scripts(purelib) if kind == "user-site" else Path(answer["scripts"])
    return Environment(
        python=path,
        prefix=Path(answer["prefix"]),
        version=answer["version"],
        kind=kind,
        has_pip=answer["modules"]["pip"],
        has_ensurepip=answer["modules"]["ensurepip"],
        uv=find_uv(Path(answer["prefix"])),
        packages={name: version for name, (version, _) in packages.items()},
        modules=answer["modules"],
        purelib=purelib,
        scripts=scripts,
        writable=_writable(purelib),
        externally_managed=answer["externally_managed"] and not answer["in_venv"],
        home=home,
    )


def _user_scripts(site: Path) -> Path:
    """Where pip puts programs next to the user's own site-packages."""
    return site.with_name("Scripts") if os.name == "nt" else site.parents[2] / "bin"


def _writable(folder: Path) -> bool:
    """Whether we could write into `folder`, or create it."""
    for existing in (folder, *folder.parents):
        if os.path.exists(existing):  # noqa: PTH110 - never raises
            return os.access(existing, os.W_OK)
    return False


def find_uv(prefix: Path) -> Path | None:
    """The `uv` program: on PATH, where its installer puts it, or in the environment itself."""
    home = Path.home()
    folders = (
        home / ".local/bin",
        home / ".cargo/bin",
        machine(os.environ) / "usr/local/bin",
        *(where / place for where in (prefix, Path(sys.prefix)) for place in ("bin", "Scripts")),
    )
    found = shutil.which("uv") or next(filter(None, (shutil.which("uv", path=str(folder)) for folder in folders)), None)
    return None if found is None else Path(found)


def search(
    checkout: Checkout,
    argument: str | None,
    environ: Mapping[str, str],
    *,
    proc_root: Path | None = None,
    prefix: Path | None = None,
    fallback: Path | None = None,
) -> FoundEnvironment:
    """The environment that runs `checkout`: the argument if there is one; else the first with torch and accelerate
    among the running GUI's, those in the checkout, the active one, the templates', and the system's Pythons with their
    user site; else the first environment that exists at all, with a warning. `fallback`: the last resort, our own
    Python. A system's Python without torch is never chosen: nobody wants our package in there.

    Raises UsageError when the argument is not a usable Python, or when nothing usable exists.
    """
    if argument is not None:
        chosen = inspect(Path(argument))
        return FoundEnvironment(chosen, "given", () if chosen.runs_kohya else (_lacks(chosen),))
    prefix = prefix or machine(environ)
    proc_root = proc_root or processes_of(prefix)
    first: tuple[Environment, str] | None = None
    unusable: list[str] = []
    for python, how, home in _candidates(checkout, environ, proc_root, prefix, fallback):
        try:
            environment = inspect(python, home=home)
        except UsageError as error:
            unusable.append(str(error))
            continue
        if environment.runs_kohya:
            return FoundEnvironment(environment, how, tuple(_rivals(checkout, environment)))
        unusable.append(_lacks(environment))
        if environment.kind not in ("system", "user-site") or environment.modules.get("kohya_ext"):
            first = first or (environment, how)
    if first is None:
        tried = "".join(f"\n  {reason}" for reason in unusable)
        raise UsageError(
            f"no Python with torch and accelerate found for {checkout.root}: finish Kohya's own setup, "
            f"or name its Python with --python PATH{tried}"
        )
    return FoundEnvironment(*first, (_lacks(first[0]),))


def _lacks(environment: Environment) -> str:
    missing = [name for name in LANDMARKS if not environment.modules.get(name)]
    return (
        f"{environment.python} has no {' and no '.join(missing)}: Kohya cannot train in it "
        "(name the environment that Kohya runs in with --python PATH)"
    )


def _rivals(checkout: Checkout, chosen: Environment) -> Iterator[str]:
    """gui.sh starts venv/, gui-uv.sh starts .venv/: where both exist, say which one we took."""
    for name in ENVIRONMENTS_IN_CHECKOUT[:2]:
        folder = checkout.root / name
        inside = [folder / place for place in ("bin", "Scripts") if os.path.isdir(folder / place)]  # noqa: PTH112 - never raises
        if inside and os.path.realpath(folder) != os.path.realpath(chosen.prefix):
            yield (
                f"{folder} exists as well: if you start the GUI from there, run the installer again "
                f"with --python {shell.quoted(inside[0] / ('python' if inside[0].name == 'bin' else 'python.exe'))}"
            )


def _candidates(
    checkout: Checkout, environ: Mapping[str, str], proc_root: Path, prefix: Path, fallback: Path | None
) -> Iterator[tuple[Path, str, str | None]]:
    """Interpreter, how it was come by, and the HOME to look at it with; each interpreter once."""
    seen: set[tuple[Path, str | None]] = set()
    for python, how, home in _all_candidates(checkout, environ, proc_root, prefix, fallback):
        if (python, home) not in seen and os.path.lexists(python):  # never raises, unlike Path.exists
            seen.add((python, home))
            yield python, how, home


def _all_candidates(
    checkout: Checkout, environ: Mapping[str, str], proc_root: Path, prefix: Path, fallback: Path | None
) -> Iterator[tuple[Path, str, str | None]]:
    for process in running_guis(proc_root):
        if process.python is not None and process.root.resolve() == checkout.root:
            home = process.environ.get("HOME")
            other = home if home != environ.get("HOME") else None
            yield process.python, f"the running GUI (process {process.pid})", other
    active = [(Path(environ[name]), f"${name}") for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environ.get(name)]
    inside = [(checkout.root / name, "the checkout") for name in ENVIRONMENTS_IN_CHECKOUT]
    around = [(folder, name) for folder in enclosing(checkout.root) for name in ENVIRONMENTS_IN_CHECKOUT]
    inside += [(folder / name, f"{folder}, which brings the checkout") for folder, name in around]
    templates = [(place, "a known location") for place in expand(ENVIRONMENTS, environ, prefix)]
    if _conda_wins(checkout.root):
        active.sort(key=lambda entry: entry[1] != "$CONDA_PREFIX")
        inside = [entry for entry in active if entry[1] == "$CONDA_PREFIX"] + inside
    for folder, how in (*inside, *active, *templates):
        for interpreter in ("bin/python", "bin/python3", "Scripts/python.exe", "python.exe"):
            if os.path.exists(folder / interpreter):  # noqa: PTH110 - never raises where this user may not look
                yield folder / interpreter, how, None
                break
    path = environ.get("PATH", os.defpath)
    if environ.get(MACHINE):  # what else is on PATH, and what runs us, is of the machine that we stand on
        fallback = None
        path = os.pathsep.join(entry for entry in path.split(os.pathsep) if Path(entry).is_relative_to(prefix))
    for name in SYSTEM_PYTHONS if path else ():
        found = shutil.which(name, path=path)
        if found:
            yield Path(found), "the system's Python", None
    if fallback is not None:
        yield fallback, "the Python that runs this installer", None


def _conda_wins(root: Path) -> bool:
    """From v25.1 gui.sh starts in the active conda environment, even where a venv/ exists."""
    try:
        return b"CONDA_PREFIX" in read_regular(root / "gui.sh", TEXT_LIMIT)
    except NotReadableError:
        return False
