"""What a run needs of its environment and its checkout, and the command that installs what is missing.

Nothing is imported: modules are looked for, and versions read from metadata, by the environment's own Python.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.environment import Environment, inspect
from kohya_ext.core import about, shell
from kohya_ext.core.shell import command
from kohya_ext.files.regular import MODULE_LIMIT, TEXT_LIMIT, NotReadableError, read_regular
from kohya_ext.install import gui_gradio, package
from kohya_ext.presets.machine import names_xformers
from kohya_ext.pysource.sources import parse
from kohya_ext.spec.hooks import TRAINING_PACKAGE

Level = Literal["ok", "warning", "problem"]

OLDEST_TORCH = (2, 0)
TORCH = "torch"
NEEDED = ("accelerate", "diffusers", "safetensors", "toml")
NUMPY_THAT_BREAKS_PINS = (2,)
SCRIPTS = ("sdxl_train.py", "fine_tune.py", "train_network.py")

# What the GUI prints at *Start training* and people take for a fault, or the other way round.
GUI_SAYS = (
    "'Max train steps: 6' in the GUI's log counts by the GUI's own fields; with Max train epoch set the script counts "
    "again: its line 'total optimization steps' is right",
    "a traceback about missing metadata after Start training is most often about images without captions of the "
    "extension that is set: `kohya-ext audit FOLDER` names them",
)


@dataclass(frozen=True)
class Check:
    """One thing a run needs. level: "problem" keeps a run from working, "warning" concerns some runs only."""

    name: str
    level: Level
    detail: str
    fix: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields that `--json` shows."""
        return {"name": self.name, "level": self.level, "detail": self.detail, "fix": self.fix}


def check(checkout: Checkout, environment: Environment, *, deep: bool = False, patched: bool = True) -> list[Check]:
    """Everything a run needs. deep: also look for each module that the training scripts import (about a second).
    patched: the checkout carries our hook, so our package must be importable.
    """
    checks = [
        Check("python", "ok", f"{environment.version} ({environment.kind}, {environment.python})"),
        _torch(environment),
        *(_module(name, environment, checkout, "problem") for name in NEEDED),
        _module("scipy", environment, checkout, "warning"),
    ]
    if patched:
        checks.append(_own_package(environment, checkout))
    if checkout.gui_root is not None:
        checks += [gradio(checkout, environment), _xformers(checkout, environment)]
    if deep:
        checks += _imports(checkout, environment, {one.name for one in checks})
    if shutil.which("git") is None:
        checks.append(Check("git", "warning", "not found: updates and some checks need it", "install git"))
    return checks


def pip_command(environment: Environment, *requirements: str) -> str:
    """The exact command that installs `requirements`; the numpy that is there is named too, so that it stays."""
    numpy = environment.packages.get("numpy")
    wanted = [*requirements, *([f"numpy=={numpy}"] if numpy else [])]
    if environment.uv is not None and (environment.kind == "uv" or not environment.has_pip):
        return shell.line(environment.uv, "pip", "install", "--python", environment.python, *wanted)
    flags = ["--user"] if environment.kind == "user-site" else []
    return shell.line(environment.python, "-m", "pip", "install", *flags, *wanted)


def _torch(environment: Environment) -> Check:
    version = environment.packages.get(TORCH, "")
    if not environment.modules.get(TORCH):
        return Check(
            "torch", "problem", f"not in {environment.place}", "finish Kohya's own setup, or name its --python"
        )
    if version and numbers(version)[:2] < OLDEST_TORCH:
        return Check(
            "torch", "problem", f"{version}: kohya_ext needs 2.0 or newer", "update Kohya (its pins have torch 2)"
        )
    return Check(TORCH, "ok", version or "present")


def _module(name: str, environment: Environment, checkout: Checkout, level: Level) -> Check:
    if environment.modules.get(name):
        return Check(name, "ok", environment.packages.get(name, "present"))
    requirement = _pin(name, checkout)
    if numbers(environment.packages.get("numpy", "")) >= NUMPY_THAT_BREAKS_PINS:
        requirement = name  # the pins of Kohya's requirements are of numpy 1's time
    return Check(name, level, f"not in {environment.place}", pip_command(environment, requirement))


def _pin(name: str, checkout: Checkout) -> str:
    """`name==version` as the checkout's own requirements have it, else the bare name."""
    pattern = re.compile(rf"^{re.escape(name)}(\[\w+\])?\s*==\s*[\w.+]+", re.IGNORECASE)
    for folder in (checkout.root, checkout.training_root):
        try:
            lines = read_regular(folder / "requirements.txt", TEXT_LIMIT).decode("utf-8", "replace").splitlines()
        except NotReadableError:
            continue
        for line in lines:
            if found := pattern.match(line.strip()):
                return found.group()
    return name


def _own_package(environment: Environment, checkout: Checkout) -> Check:
    there = package.state(environment)
    fix = command("install", "--python", environment.python, checkout.root)
    if there == "absent" and not environment.modules.get(about.PACKAGE):
        return Check(about.PACKAGE, "problem", f"not in {environment.place}: Kohya runs without kohya_ext", fix)
    if there == "other":
        detail = f"the copy in {environment.place} differs from this one ({about.VERSION})"
        return Check(about.PACKAGE, "warning", detail, fix)
    version = environment.packages.get(about.NAME, about.VERSION)
    return Check(about.PACKAGE, "ok", f"{version}{' (a link to a source tree)' if there == 'editable' else ''}")


def gradio(checkout: Checkout, environment: Environment) -> Check:
    """The GUI's toolkit: there, and on good terms with the release."""
    version = environment.packages.get("gradio")
    if version is None:
        return Check("gradio", "warning", f"not in {environment.place}: the GUI cannot start", _setup(checkout))
    oldest, newest = gui_gradio.TEXT_SLIDER_RELEASES
    minds = numbers(version)[0] >= gui_gradio.GRADIO_THAT_MINDS and oldest <= numbers(checkout.release) <= newest
    if minds and not (gui_gradio.warmup_is_number(checkout) or gui_gradio.slider_starts_with_number(checkout)):
        return Check(
            "gradio",
            "warning",
            f"{version}: with {checkout.release} the finetune tab fails at every event (its warm-up slider is a text)",
            f"{command('install', '--fix-warmup', checkout.root)}, or in "
            f"{checkout.root / gui_gradio.CONFIG}, section [{gui_gradio.SECTION}]: {gui_gradio.CURE}",
        )
    return Check("gradio", "ok", version)


def _xformers(checkout: Checkout, environment: Environment) -> Check:
    """What some presets choose for attention; rented machines' templates omit it, to keep their torch."""
    if environment.modules.get("xformers"):
        return Check("xformers", "ok", environment.packages.get("xformers", "present"))
    version = environment.packages.get(TORCH, "")
    absent = f"not in {environment.place}"
    folder = checkout.presets_dir
    files = sorted(folder.glob("*/user_presets/*.json")) if folder is not None else []
    wanting = [path.stem for path in files if names_xformers(path)]
    if not wanting:
        return Check("xformers", "ok", f"{absent}; your presets do without it")
    return Check(
        "xformers",
        "warning",
        f"{absent}: training stops with {', '.join(wanting)}, which choose it under CrossAttention",
        "choose sdpa there, torch's own; or install the xformers that was built for torch " + version,
    )


def _setup(checkout: Checkout) -> str:
    starters = [name for name in ("setup.sh", "gui-uv.sh") if (checkout.root / name).is_file()]
    return f"finish Kohya's own setup ({' or '.join(starters) or 'see its README'})"


def _imports(checkout: Checkout, environment: Environment, known: set[str]) -> Iterator[Check]:
    wanted = sorted(imported_modules(checkout) - known - {"kohya_ext"})
    present = inspect(environment.python, home=environment.home, extra_modules=wanted).modules
    missing = [name for name in wanted if not present.get(name)]
    if missing:
        detail = f"the training scripts import {', '.join(missing)}, not in {environment.place}"
        yield Check("imports", "problem", detail, _setup(checkout))
    else:
        yield Check("imports", "ok", f"{len(wanted)} more modules that the training scripts import are there")


def imported_modules(checkout: Checkout) -> set[str]:
    """Third-party modules that the main training scripts need at import: read as text, following `library`."""
    root = checkout.training_root
    queue = [root / name for name in SCRIPTS if (root / name).is_file()]
    seen: set[Path] = set()
    wanted: set[str] = set()
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _top_level_imports(path):
            top = module.split(".")[0]
            here = [
                root.joinpath(*module.split(".")).with_suffix(".py"),
                root / top / "__init__.py",
                root / f"{top}.py",
            ]
            local = [candidate for candidate in here if candidate.is_file()]
            if local:
                queue.append(local[0])
            elif top not in sys.stdlib_module_names and not (root / top).is_dir():
                wanted.add(top)
    return wanted


def _top_level_imports(path: Path) -> Iterator[str]:
    """Modules that a file imports unconditionally: what is in try, if or a function may be missing."""
    try:
        tree = parse(read_regular(path, MODULE_LIMIT))
    except (NotReadableError, SyntaxError):
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            if node.module == TRAINING_PACKAGE:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "v25.2.1-3-gabc" is (25, 2, 1); (0,) when there is none."""
    found = re.match(r"\D{0,2}(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found.group(1).split(".")) if found else (0,)


def worst(checks: Sequence[Check]) -> Level:
    """The most serious level among `checks`."""
    levels: tuple[Level, ...] = ("problem", "warning")
    return next((level for level in levels if any(one.level == level for one in checks)), "ok")
