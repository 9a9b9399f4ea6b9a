from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.install import apply
from kohya_ext.install.checkout import Checkout
from tests.install import trees

Make = Callable[..., Checkout]
WithVenv = Callable[[Checkout], Checkout]
SCRIPT = Path(__file__).resolve().parents[2] / "install.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def install_sh(*words: object, path: str | None = None, cwd: Path = SCRIPT.parent) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environ["PATH"] = path or f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        env=environ,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_help_names_exactly_its_options() -> None:
    done = install_sh("--help")
    assert done.returncode == 0
    expected = "[CHECKOUT] [--demo] [--yes] [--dry-run] [--uninstall] [--presets-only] [--python PATH]"
    assert done.stdout.splitlines()[0] == f"usage: ./install.sh {expected}"


@pytest.mark.parametrize(
    "words",
    [
        ["--nonsense"],
        ["a", "b"],
        ["--python"],
        ["--demo", "--uninstall"],
        ["--demo", "--dry-run"],
        ["--demo", "checkout"],
        ["--demo", "--python", "/bin/ls"],
        ["--uninstall", "--python", "/bin/ls"],
        ["--uninstall", "--python=/nowhere/python"],
    ],
)
def test_wrong_usage(words: list[str]) -> None:
    done = install_sh(*words)
    assert done.returncode == 2
    assert "install.sh: " in done.stderr


def test_a_provisioning_script_runs_it_twice(make: Make, with_venv: WithVenv) -> None:
    """No terminal, no question, exit 0, and the second time nothing changes."""
    checkout = with_venv(make("submodule", "with space"))
    done = install_sh(checkout.root, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "+++ b/kohya_gui/__init__.py" in done.stdout
    assert apply.installed(checkout) is None
    assert install_sh(checkout.root, "--yes").returncode == 0
    before = trees.whole(checkout.root)
    done = install_sh(checkout.root)
    assert done.returncode == 0, done.stderr
    assert "already" in done.stdout
    assert trees.whole(checkout.root) == before
    assert install_sh("--uninstall", checkout.root, "--python", sys.executable).returncode == 0
    assert apply.installed(checkout) is None


def test_from_inside_the_checkout(make: Make, with_venv: WithVenv) -> None:
    checkout = with_venv(make("embedded"))
    done = install_sh("--presets-only", cwd=checkout.root)
    assert done.returncode == 0, done.stderr
    found = apply.installed(checkout)
    assert found is not None and found.patch_set == "presets"


@pytest.mark.parametrize("spelling", [["--python", "/nowhere/python"], ["--python=/nowhere/python"]])
def test_a_wrong_python_is_reported_by_a_right_one(make: Make, spelling: list[str]) -> None:
    done = install_sh(make("embedded").root, *spelling)
    assert done.returncode == 2
    assert "/nowhere/python: no such file" in done.stderr


def test_no_checkout() -> None:
    assert install_sh("/").returncode == 3


def test_without_a_recent_python(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "cat"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = install_sh(path=str(tmp_path))
    assert done.returncode == 2
    assert "no Python 3.10 or newer found" in done.stderr
