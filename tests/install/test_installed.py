from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.environment import Environment, inspect
from kohya_ext.core import about
from kohya_ext.install import installer, package
from kohya_ext.install.installed import examine
from tests.checkout import pretended
from tests.checkout.pythons import KOHYA, copy_venv, make_venv

SMALL = pretended.SMALL


@pytest.fixture(scope="session")
def small_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("pythons") / "small", KOHYA).parent.parent


@pytest.fixture
def environment(small_venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """With a small package of ours that can be imported."""
    for module in (package, installer):
        monkeypatch.setattr(module, "package_files", lambda: SMALL)
    found = inspect(copy_venv(small_venv, tmp_path / "venv"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pretended.run(found, installer.write_wheel(scratch), scratch)
    shutil.rmtree(scratch)
    return found


def info(environment: Environment) -> Path:
    return next(environment.purelib.glob("kohya_ext-*.dist-info"))


def ours(environment: Environment, name: str) -> Path:
    return environment.purelib / "kohya_ext" / name


def test_whole(environment: Environment) -> None:
    found = examine(environment)
    assert (found.condition, found.version, found.faults) == ("intact", about.VERSION, ())
    assert found.digest == package.digest()
    assert not list(environment.purelib.glob("kohya_ext/**/*.pyc"))  # it only looks


def remove_package(env: Environment) -> None:
    shutil.rmtree(ours(env, ""))
    shutil.rmtree(info(env))


def put_a_folder_for_a_file(env: Environment) -> None:
    ours(env, "core/about.py").unlink()
    ours(env, "core/about.py").mkdir()


SPOILED: dict[str, tuple[Callable[[Environment], object], str, str]] = {
    "empty file": (lambda env: ours(env, "core/about.py").write_bytes(b""), "damaged", "core/about.py was changed"),
    "zeros": (lambda env: ours(env, "core/about.py").write_bytes(b"\0" * 9), "damaged", "core/about.py was changed"),
    "one file more": (lambda env: ours(env, "x.py").write_bytes(b""), "damaged", "x.py does not belong there"),
    "one file less": (lambda env: ours(env, "core/about.py").unlink(), "partial", "core/about.py is missing"),
    "a folder less": (lambda env: shutil.rmtree(ours(env, "runtime")), "partial", "and 0 more"),
    "no metadata": (lambda env: shutil.rmtree(info(env)), "partial", "has no metadata"),
    "no RECORD": (lambda env: (info(env) / "RECORD").unlink(), "partial", "RECORD is missing or empty"),
    "empty RECORD": (lambda env: (info(env) / "RECORD").write_bytes(b""), "partial", "RECORD is missing or empty"),
    "binary RECORD": (
        lambda env: (info(env) / "RECORD").write_bytes(b"\xff\0"),
        "partial",
        "RECORD is missing or empty",
    ),
    "no package": (lambda env: shutil.rmtree(ours(env, "")), "partial", "is missing"),
    "nothing": (remove_package, "absent", ""),
    "renamed": (lambda env: ours(env, "").rename(ours(env, "").with_name("kohya_ext.off")), "partial", "is missing"),
    "pip's": (lambda env: (env.purelib / "~ohya_ext").mkdir(), "partial", "~ohya_ext was left by a killed installer"),
    "a second version": (
        lambda env: shutil.copytree(info(env), env.purelib / "kohya_ext-9.9.dist-info"),
        "partial",
        "metadata of",
    ),
    "a file that is a folder": (
        put_a_folder_for_a_file,
        "partial",
        "core/about.py is missing",
    ),
}


@pytest.mark.parametrize("spoil", list(SPOILED))
def test_spoiled(environment: Environment, spoil: str) -> None:
    act, condition, words = SPOILED[spoil]
    act(environment)
    found = examine(environment)
    assert found.condition == condition
    assert words.replace("and 0 more", "is missing") in found.said
    assert not found.usable


def test_a_copy_that_comes_first_on_the_path(environment: Environment) -> None:
    """All bytes are right, and Kohya would still get another one."""
    shadow = environment.purelib / "shadow"
    shutil.copytree(ours(environment, ""), shadow / "kohya_ext")
    (environment.purelib / "first.pth").write_text(f"import sys; sys.path.insert(0, {str(shadow)!r})\n")
    found = examine(environment)
    assert (found.condition, found.usable) == ("unimportable", False)
    assert "is imported first by" in found.said


def test_one_that_cannot_be_imported(environment: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole by its RECORD, and broken: a build of ours that does not work with that Python."""
    broken = {**SMALL, "kohya_ext/runtime/wrapping.py": b"import surely_absent\n"}
    monkeypatch.setattr(installer, "package_files", lambda: broken)
    (tmp_path / "scratch").mkdir()
    pretended.run(environment, installer.write_wheel(tmp_path), tmp_path / "scratch")
    found = examine(environment)
    assert found.condition == "unimportable"
    assert "surely_absent" in found.said


def test_what_is_in_our_own_variables_does_not_count(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(about.__file__).parents[1]))
    shutil.rmtree(ours(environment, ""))
    shutil.rmtree(info(environment))
    assert examine(environment).condition == "absent"
