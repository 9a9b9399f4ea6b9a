"""Another version of ourselves takes the place of the installed one: lines, package, presets and record together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext import presets
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.checkout.environment import inspect
from kohya_ext.core.about import VERSION
from kohya_ext.core.errors import CONFLICT, DONE, ConflictError
from kohya_ext.install import apply, installer, package
from kohya_ext.install.installed import compare
from tests.checkout import trees
from tests.checkout.pythons import KOHYA, SITE, make_venv
from tests.checkout.versions import being
from tests.cli.conftest import PRESET, Ran

Make = Callable[..., Checkout]
Run = Callable[..., Ran]
WithVenv = Callable[[Checkout], Checkout]
OLD, NEW = "0.3.0", "0.4.0"
REPOSITORY = Path(__file__).parents[2]


def of_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets of that version."""

    def collect(checkout: Checkout, **_: object) -> dict[str, bytes]:
        return {PRESET: f'{{"of": "{version}"}}\n'.encode()} if checkout.gui_root else {}

    monkeypatch.setattr(presets, "collect", collect)


def together(checkout: Checkout, version: str) -> None:
    """Lines, package, presets and record are all of `version`."""
    form = version.split(".")[1].encode()
    record = apply.installed(checkout)
    assert record is not None and record.version == version
    assert b"# >>> kohya_ext " + form in (checkout.library / "__init__.py").read_bytes()
    assert compare(checkout.root / "venv" / SITE).version == version
    assert len(list((checkout.root / "venv" / SITE).glob("*ohya_ext*.dist-info"))) == 1
    if checkout.gui_root:
        assert version in (checkout.root / PRESET).read_text()


@pytest.mark.parametrize(("first", "second"), [(OLD, NEW), (NEW, OLD)], ids=["upgrade", "downgrade"])
def test_install_of_another_version(
    make: Make, with_venv: WithVenv, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    checkout = with_venv(make("submodule"))
    before = trees.whole(checkout.root)
    of_version(first, monkeypatch)
    with being(first, tmp_path):
        assert run("install", checkout.root).code == DONE
        together(checkout, first)
    of_version(second, monkeypatch)
    with being(second, tmp_path):
        assert f"installed by kohya_ext {first}; this command is of {second}" in run("status", checkout.root).text
        done = run("install", checkout.root)
        assert done.code == DONE, done.errors
        assert (f"{first} was installed here" in done.text) is (second == OLD)
        together(checkout, second)
        assert run("status", checkout.root).code == DONE
        assert run("uninstall", checkout.root).code == DONE
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize(("first", "second"), [(OLD, NEW), (NEW, OLD)], ids=["upgrade", "downgrade"])
def test_update_by_another_version(
    make: Make, with_venv: WithVenv, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """`update` of a newer clone: never lines of one version and a package of another."""
    origin = make("embedded", "origin").root
    trees.git(tmp_path, "clone", "-q", str(origin), "mine")
    checkout = with_venv(describe(tmp_path / "mine"))
    of_version(first, monkeypatch)
    with being(first, tmp_path):
        assert run("install", checkout.root).code == DONE
    trees.write(origin, {".release": "v22.4.0"})
    trees.commit(origin, "v22.4.0")
    of_version(second, monkeypatch)
    with being(second, tmp_path):
        done = run("update", checkout.root)
        assert done.code == DONE, done.errors
        together(describe(checkout.root), second)
        assert run("status", checkout.root).code == DONE


def test_update_takes_nothing_off_where_the_package_cannot_follow(
    make: Make, with_venv: WithVenv, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = make("embedded", "origin").root
    trees.git(tmp_path, "clone", "-q", str(origin), "mine")
    checkout = with_venv(describe(tmp_path / "mine"))
    with being(OLD, tmp_path):
        assert run("install", checkout.root).code == DONE
    before = trees.whole(checkout.root)

    def nothing_there(_: object) -> None:
        raise ConflictError("neither pip nor uv")

    monkeypatch.setattr(installer, "chosen", nothing_there)
    with being(NEW, tmp_path):
        assert run("update", checkout.root).code == CONFLICT
    assert trees.whole(checkout.root) == before


def test_an_upgrade_that_fails_leaves_the_old_version_whole(
    make: Make, with_venv: WithVenv, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = with_venv(make("embedded"))
    of_version(OLD, monkeypatch)
    with being(OLD, tmp_path):
        assert run("install", checkout.root).code == DONE
    before = trees.whole(checkout.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(checkout.root))

    monkeypatch.setattr(installer, "run", full)
    with being(NEW, tmp_path):
        done = run("install", checkout.root)
        assert (done.code, "no space left" in done.errors) == (CONFLICT, True)
    assert trees.whole(checkout.root) == before
    with being(OLD, tmp_path):
        assert run("status", checkout.root).code == DONE


def test_all_environments_that_are_remembered_follow(
    make: Make, with_venv: WithVenv, run: Run, kohya_venv: Path, tmp_path: Path
) -> None:
    checkout = with_venv(make("embedded"))
    far = shutil.copytree(kohya_venv, tmp_path / "far", symlinks=True)
    with being(OLD, tmp_path):
        assert run("install", checkout.root).code == DONE
        assert run("install", checkout.root, "--python", far).code == DONE
    with being(NEW, tmp_path):
        assert run("install", checkout.root).code == DONE
        assert {compare(venv / SITE).version for venv in (checkout.root / "venv", far)} == {NEW}
        assert run("status", checkout.root).code == DONE


def test_presets_of_a_newer_version_bring_its_package_along(
    make: Make, with_venv: WithVenv, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`presets install` writes the lines of its own version too."""
    from kohya_ext.presets import collection, document

    checkout = with_venv(make("submodule"))
    with being(OLD, tmp_path):
        assert run("install", checkout.root).code == DONE
    monkeypatch.setattr(document, "bundled", list)
    files = {PRESET: f'{{"of": "{NEW}"}}\n'.encode()}
    monkeypatch.setattr(collection, "collect_all", lambda *_, **__: collection.FittedPresets(files))
    with being(NEW, tmp_path):
        assert run("presets", "install", checkout.root).code == DONE
        together(checkout, NEW)


def test_a_format_of_the_future_is_refused(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    run("install", checkout.root)
    manifest = checkout.root / ".kohya_ext" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    before = trees.whole(checkout.root)
    for verb in ("install", "uninstall"):
        assert run(verb, checkout.root).code == CONFLICT
        assert trees.whole(checkout.root) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="install.sh is for others")
def test_two_clones_with_a_real_pip(make: Make, tmp_path: Path) -> None:
    """`git pull && ./install.sh` of a newer clone, and the older clone again."""
    clones = {}
    for version in ("0.1.0", "0.2.0"):
        clone = tmp_path / version
        clone.mkdir()
        for name in ("kohya_ext", "patches", "presets"):
            shutil.copytree(REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("install.sh", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(REPOSITORY / name, clone)
        about = clone / "kohya_ext" / "core" / "about.py"
        about.write_text(about.read_text().replace(f'VERSION = "{VERSION}"', f'VERSION = "{version}"'))
        (clone / "kohya_ext" / f"only_{version.replace('.', '_')}.py").write_text("")
        clones[version] = clone
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    python = make_venv(tmp_path / "kohya", KOHYA)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def do(version: str, *words: object) -> None:
        command = [str(clones[version] / "install.sh"), "--yes", *map(str, words), str(checkout.root)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)
        assert done.returncode == DONE, done.stderr

    do("0.1.0", "--python", python)
    for version, other in (("0.2.0", "0_1_0"), ("0.1.0", "0_2_0")):
        do(version)
        environment = inspect(python)
        found = compare(environment.purelib)
        assert (found.condition, found.version) == ("intact", version)
        assert not (environment.purelib / "kohya_ext" / f"only_{other}.py").exists()
        record = apply.installed(checkout)
        assert record is not None and record.version == version
    do("0.2.0", "--uninstall")
    assert trees.whole(checkout.root) == before
    assert not list(inspect(python).purelib.glob("*kohya_ext*"))
    assert package.state(inspect(python)) == "absent"
