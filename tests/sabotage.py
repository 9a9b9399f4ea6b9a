"""Twenty-odd ways in which an installed kohya_ext can be broken: what a full disk, a killed pip or two versions leave.

Used on miniatures in the default run, and on the real training scripts by the tests marked upstream.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from kohya_ext.install.installer import write_wheel

Damage = Callable[[Path], None]


def site_with_package(folder: Path) -> Path:
    """A folder as `pip install --target` makes it, with this very copy of kohya_ext and its metadata."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(write_wheel(folder)) as wheel:
        wheel.extractall(folder)
    return folder


def _text(module: str, change: Callable[[str], str]) -> Damage:
    def damage(site: Path) -> None:
        path = site / "kohya_ext" / module
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return damage


def syntax_error(module: str) -> Damage:
    return _text(module, lambda text: text + "\ndef (:\n")


def nul(module: str) -> Damage:
    return _text(module, lambda text: text[: len(text) // 2] + "\0" * (len(text) - len(text) // 2))


def empty(module: str) -> Damage:
    return _text(module, lambda text: "")


def raising(module: str, statement: str) -> Damage:
    return _text(module, lambda text: text + f"\n{statement}\n")


def without(module: str, name: str) -> Damage:
    """Another version's file: what others want from it has another name there."""
    return _text(module, lambda text: text.replace(f"def {name}(", f"def {name}_of_another_version("))


def other_signature(module: str, name: str) -> Damage:
    """Another version's function: it is there, and takes other arguments."""
    return _text(module, lambda text: text.replace(f"def {name}(", f"def {name}(surely, not_these, *, "))


def renamed(site: Path) -> None:
    """As pip leaves it when it is killed: ~ohya_ext."""
    (site / "kohya_ext").rename(site / "~ohya_ext")


def removed(site: Path) -> None:
    shutil.rmtree(site / "kohya_ext")


def half_removed(site: Path) -> None:
    for path in sorted((site / "kohya_ext").rglob("*.py"))[::2]:
        path.unlink()


SABOTAGES: dict[str, Damage] = {
    "syntax error in the package": syntax_error("__init__.py"),
    "NUL in runtime": nul("runtime/__init__.py"),
    "empty runtime": empty("runtime/__init__.py"),
    "empty names of hooks": empty("spec/hooks.py"),
    "OSError in the state of the run": raising("runtime/run.py", "raise OSError(5, 'Input/output error')"),
    "ImportError in the import hook": raising("runtime/wrapping.py", "from os import surely_absent"),
    "syntax error in wrapping": syntax_error("runtime/wrapping.py"),
    "empty options": empty("runtime/options.py"),
    "OSError in options": raising("runtime/options.py", "raise OSError(5, 'Input/output error')"),
    "skew in optimizers": without("runtime/optimizers.py", "get_optimizer"),
    "skew in averaging": without("runtime/averaging.py", "current"),
    "skew at the save": other_signature("runtime/checkpoints.py", "_save_both"),
    "skew at the optimizer": other_signature("runtime/telemetry.py", "count_skips"),
    "NUL in checkpoints": nul("runtime/checkpoints.py"),
    "ImportError in accelerators": raising("runtime/accelerators.py", "import surely_absent"),
    "syntax error in the average": syntax_error("runtime/average.py"),
    "empty shadow": empty("ema/shadow.py"),
    "OSError in AdaCoor": raising("optim/adacoor.py", "raise OSError(5, 'Input/output error')"),
    "package renamed": renamed,
    "package removed": removed,
    "package half removed": half_removed,
}
