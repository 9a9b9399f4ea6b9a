from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.environment import Environment, clean_environ, inspect
from kohya_ext.core import about
from kohya_ext.core.errors import CONFLICT, ConflictError
from kohya_ext.core.shell import console_script
from kohya_ext.files.lock import locked
from kohya_ext.files.transaction import Transaction
from kohya_ext.install import installer, manifest, package
from kohya_ext.install.installed import Installed, examine
from kohya_ext.install.installer import package_files
from kohya_ext.install.manifest import Manifest
from kohya_ext.install.package import PackageResult
from kohya_ext.install.worksite import REGISTER
from tests.checkout import pretended
from tests.checkout.pythons import BASE_PYTHON, KOHYA, SITE, copy_venv, make_venv, pretend
from tests.install import test_faults as faults
from tests.systems import IS_ROOT, WINDOWS, posix_modes

PINS = {**KOHYA, "numpy": "1.26.4", "gradio": "4.43.0"}


SMALL = ("kohya_ext/__init__.py", "kohya_ext/core/about.py", "kohya_ext/core/errors.py", "kohya_ext/cli/__init__.py")


def _run(verb: str, environment: Environment, root: Path) -> PackageResult:
    """The effect on the environment alone, in a transaction of the folder `root`."""
    act = package.Packages([environment])
    with locked(root), package.held([environment]):
        steps, results = package.effects(verb, [environment], root)
        if steps:
            Transaction(root, {package.EFFECT: act}).run(verb, steps)
    return (*results, *act.results)[0]


def put(environment: Environment, root: Path) -> PackageResult:
    return _run(package.INSTALL, environment, root)


def take(environment: Environment, root: Path) -> PackageResult:
    return _run(package.REMOVE, environment, root)


def checkout_with(root: Path, environment: Environment) -> Path:
    """A folder whose manifest says that it uses the package in `environment`."""
    (root / ".kohya_ext").mkdir(parents=True)
    package = manifest.package_entry(root, None, [(environment, None)])
    record = Manifest("hook", "v1", (), {}, None, (), package, root=str(root))
    (root / ".kohya_ext" / "manifest.json").write_bytes(record.to_json())
    return root


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for a checkout."""
    return tmp_path_factory.mktemp("checkouts") / "first"


@pytest.fixture(autouse=True)
def there(first: Path) -> None:
    first.mkdir(exist_ok=True)


def consist_of(patch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    patch.setattr(package, "package_files", lambda: files)
    patch.setattr(installer, "package_files", lambda: files)


@pytest.fixture(scope="session")
def few_files() -> dict[str, bytes]:
    return {name: data for name, data in package_files().items() if name in SMALL}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, few_files: dict[str, bytes]) -> None:
    """A package of few files: an installer compiles each of them."""
    consist_of(monkeypatch, few_files)


def quickly(environment: Environment) -> Environment:
    """With the pip of these tests, where there is one: the one inside ensurepip compiles itself at each run."""
    return dataclasses.replace(environment, uv=None, has_ensurepip=importlib.util.find_spec("pip") is None)


@pytest.fixture(scope="session")
def pinned_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with Kohya's pins, without pip: what uv makes, and the quickest to make."""
    return make_venv(tmp_path_factory.mktemp("pythons") / "pinned", PINS).parent.parent


@pytest.fixture
def pinned(pinned_venv: Path, tmp_path: Path) -> Environment:
    return quickly(inspect(copy_venv(pinned_venv, tmp_path / "pinned")))


@pytest.fixture(scope="session")
def installed_venv(
    pinned_venv: Path, tmp_path_factory: pytest.TempPathFactory, few_files: dict[str, bytes], first: Path
) -> Path:
    """The same with our package, for the checkout `first`."""
    folder = tmp_path_factory.mktemp("pythons") / "installed"
    environment = quickly(inspect(copy_venv(pinned_venv, folder)))
    first.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        consist_of(patch, few_files)
        assert put(environment, first).action == "installed"
    return folder


@pytest.fixture
def installed(installed_venv: Path, tmp_path: Path) -> Environment:
    return quickly(inspect(copy_venv(installed_venv, tmp_path / "installed")))


def files(environment: Environment) -> set[str]:
    everything = environment.prefix.rglob("*")
    return {str(path.relative_to(environment.prefix)) for path in everything if "__pycache__" not in path.parts}


def run(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(environment.python), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environ(), cwd="/", check=False)


def test_it_is_importable_and_no_pin_moves(
    pinned_venv: Path, tmp_path: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole package, by the pip that Python brings along."""
    consist_of(monkeypatch, package_files())
    environment = inspect(copy_venv(pinned_venv, tmp_path / "venv"))
    if not environment.has_ensurepip:
        pytest.skip("this Python has no ensurepip")
    put(dataclasses.replace(environment, uv=None), first)
    installed = inspect(environment.python)
    assert package.state(installed) == "same"
    assert examine(installed) == Installed("intact", about.VERSION, package.digest())
    assert {name: version for name, version in installed.packages.items() if name != "kohya-ext"} == PINS
    assert run(installed, "-c", "import kohya_ext.runtime, kohya_ext.install.apply").returncode == 0
    assert "usage: kohya-ext" in run(installed, "-m", "kohya_ext", "--help").stdout
    assert console_script(installed.scripts) is not None
    assert not installed.has_pip


def test_a_second_time_nothing_happens(
    installed: Environment, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "run", lambda *_: pytest.fail("no installer may run"))
    before = files(installed)
    assert put(installed, first).action == "unchanged"
    assert put(installed, tmp_path).action == "unchanged"
    assert files(installed) == before
    assert package.read_register(installed).checkouts == tuple(sorted((str(first), str(tmp_path))))


def test_the_last_checkout_takes_the_package_along(pinned: Environment, installed: Environment, tmp_path: Path) -> None:
    one, two = (checkout_with(tmp_path / name, installed) for name in ("one", "two"))
    for user in (one, two):
        put(installed, user)
    assert take(installed, one).action == "kept"
    assert package.state(installed) == "same"
    assert take(installed, two).action == "removed"
    assert files(installed) == files(pinned)


def test_a_checkout_that_has_gone_over_to_another_environment_keeps_nothing(
    pinned: Environment, installed: Environment, tmp_path: Path
) -> None:
    """Registered, but its own record names another Python: a copied tree with its environment inside."""
    other = checkout_with(tmp_path / "other", pinned)
    put(installed, other)
    put(installed, tmp_path)
    assert take(installed, tmp_path).action == "removed"


@pytest.mark.parametrize("error", [ConflictError("moved"), KeyboardInterrupt()], ids=["conflict", "Ctrl+C"])
@pytest.mark.parametrize("step", ["_settle", "_require_whole"])
def test_what_fails_after_the_installer_takes_the_package_out_again(
    pinned: Environment, first: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    before = files(pinned)

    def fail(*_: object) -> None:
        assert package.state(pinned) == "same"  # the installer has run
        raise error

    monkeypatch.setattr(package, step, fail)
    with pytest.raises(type(error)):
        put(pinned, first)
    assert files(pinned) == before


def test_a_failed_replacement_leaves_what_was_there(
    installed: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed.purelib / "kohya_ext" / "errors.py").write_text("mine")
    before, register = files(installed), package.read_register(installed)

    def moved(*_: object) -> None:
        raise ConflictError("moved")

    monkeypatch.setattr(package, "_require_whole", moved)
    with pytest.raises(ConflictError, match="moved"):
        put(installed, tmp_path)
    assert package.read_register(installed) == register
    assert files(installed) == before
    assert (installed.purelib / "kohya_ext" / "errors.py").read_text() == "mine"


def test_a_checkout_that_was_deleted_keeps_nothing(installed: Environment, first: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    put(installed, tmp_path / "one")
    assert package.read_register(installed).checkouts == tuple(sorted((str(first), str(tmp_path / "one"))))
    assert take(installed, tmp_path / "one").action == "removed"  # there is nothing of ours in first/


@pytest.mark.parametrize("spoil", ["edit", "add", "delete", "version", "no metadata", "no package", "pip's leftovers"])
def test_a_copy_that_differs_is_replaced(installed: Environment, pinned: Environment, first: Path, spoil: str) -> None:
    folder = installed.purelib / "kohya_ext"
    info = next(installed.purelib.glob("kohya_ext-*.dist-info"))
    if spoil == "edit":
        (folder / "core" / "errors.py").write_text("")
    elif spoil == "add":
        (folder / "old.py").write_text("")
    elif spoil == "delete":
        (folder / "core" / "errors.py").unlink()
    elif spoil == "no metadata":
        shutil.rmtree(info)
    elif spoil == "no package":
        shutil.rmtree(folder)
    elif spoil == "pip's leftovers":
        folder.rename(folder.with_name("~ohya_ext"))
        info.rename(info.with_name(f"~~hya_ext-{about.VERSION}.dist-info"))
    else:
        for name in ("RECORD", "METADATA"):
            (info / name).write_text((info / name).read_text().replace(about.VERSION, "0.0.1"))
        info.rename(info.with_name("kohya_ext-0.0.1.dist-info"))
    assert package.state(installed) != "same"
    assert put(installed, first).action in ("replaced", "installed")
    assert examine(installed, importing=False).condition == "intact"
    assert package.state(installed) == "same"
    assert package.read_register(installed).ours
    assert take(installed, first).action == "removed"
    assert files(installed) == files(pinned)


def test_what_was_there_before_us_stays(installed: Environment, tmp_path: Path) -> None:
    (installed.purelib / REGISTER).unlink()
    assert put(installed, tmp_path).action == "unchanged"
    assert take(installed, tmp_path).action == "kept"
    assert package.state(installed) == "same"
    assert not (installed.purelib / REGISTER).exists()


def test_a_developers_link_is_left_alone(pinned: Environment, tmp_path: Path) -> None:
    pretend(pinned.purelib, {"kohya_ext": about.VERSION})
    info = pinned.purelib / f"kohya_ext-{about.VERSION}.dist-info"
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": True}}))
    assert package.state(pinned) == "editable"
    before = files(pinned)
    assert put(pinned, tmp_path).action == "unchanged"
    assert take(pinned, tmp_path).action == "kept"
    assert files(pinned) == before


def test_without_any_installer_the_fix_is_named(
    pinned: Environment, monkeypatch: pytest.MonkeyPatch, first: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    nothing = dataclasses.replace(pinned, uv=None, has_ensurepip=False)
    before = files(pinned)
    with pytest.raises(ConflictError, match="Put uv on PATH, or install pip") as error:
        put(nothing, first)
    assert error.value.exit_code == CONFLICT
    assert files(pinned) == before


def test_an_installer_that_fails_is_quoted(pinned: Environment, tmp_path: Path, first: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 2\n")
    uv.chmod(0o755)
    with pytest.raises(ConflictError, match="no space left"):
        put(dataclasses.replace(pinned, uv=uv), first)
    assert package.state(pinned) == "absent"


def test_uv_is_told_which_python_and_nothing_else(pinned: Environment, tmp_path: Path, first: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nenv > {tmp_path}/environ\nexit 1\n')
    uv.chmod(0o755)
    with pytest.raises(ConflictError):
        put(dataclasses.replace(pinned, uv=uv, kind="uv"), first)
    words = (tmp_path / "words").read_text().split("\n")
    assert words[:4] == ["pip", "install", "--python", str(pinned.python)]
    assert {"--no-deps", "--no-index"} <= set(words)
    assert "UV_OFFLINE=1" in (tmp_path / "environ").read_text()


def test_a_moved_pin_is_noticed(pinned: Environment, monkeypatch: pytest.MonkeyPatch, first: Path) -> None:
    real = inspect

    def after(*arguments: object, **options: object) -> Environment:
        found = real(*arguments, **options)  # type: ignore[arg-type]
        return dataclasses.replace(found, packages={**found.packages, "numpy": "2.0.0"})

    monkeypatch.setattr(package, "inspect", after)
    with pytest.raises(ConflictError, match="numpy"):
        put(pinned, first)


def test_the_installers_configuration_cannot_redirect_it(
    pinned: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Path
) -> None:
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parents[2]))
    assert put(pinned, first).action == "installed"
    assert package.state(pinned) == "same"


def test_a_users_own_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's Python with Kohya's packages in a user's ~/.local, or where Windows has that."""
    site, home = tmp_path / "home" / ".local" / SITE, str(tmp_path / "home")
    if WINDOWS:
        monkeypatch.setenv("APPDATA", home)
        site = tmp_path / "home" / "Python" / "Python{}{}".format(*sys.version_info) / "site-packages"
    pretend(site, PINS)
    environment = inspect(BASE_PYTHON, home=None if WINDOWS else home)
    if not environment.has_pip and not environment.has_ensurepip:
        pytest.skip("this Python has neither pip nor ensurepip")
    assert environment.kind == "user-site"
    before = set(site.iterdir())
    assert put(environment, tmp_path).action == "installed"
    assert (site / "kohya_ext" / "__init__.py").is_file()
    assert take(environment, tmp_path).action == "removed"
    assert set(site.iterdir()) == before


def test_only_a_system_that_kohya_uses_is_broken_into(pinned: Environment) -> None:
    assert "PIP_BREAK_SYSTEM_PACKAGES" not in installer.environ(pinned, Path("/tmp"))
    system = dataclasses.replace(pinned, kind="system", externally_managed=True)
    assert installer.environ(system, Path("/tmp"))["PIP_BREAK_SYSTEM_PACKAGES"] == "1"


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_as_root_the_files_belong_to_the_environments_owner(
    pinned: Environment, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a process of its owner, who need not be able to run a Python of ours."""
    found = dataclasses.replace(pinned, modules={**pinned.modules, "kohya_ext": True})
    monkeypatch.setattr(package, "inspect", lambda *_, **__: found)

    def run(environment: Environment, wheel: Path, scratch: Path) -> None:
        assert wheel.stat().st_uid == 4321  # who runs pip, and reads it
        pretended.run(environment, wheel, scratch)

    monkeypatch.setattr(installer, "run", run)
    for path in (pinned.prefix, *pinned.prefix.rglob("*")):
        os.chown(path, 4321, 4321, follow_symlinks=False)
    put(pinned, first)
    ours = [path for path in pinned.purelib.rglob("*") if "kohya_ext" in str(path.relative_to(pinned.purelib))]
    assert len(ours) > len(SMALL)
    assert {path.stat().st_uid for path in (*ours, pinned.scripts / "kohya-ext")} == {4321}


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_an_environment_of_somebody_else(pinned: Environment, first: Path) -> None:
    pinned.purelib.chmod(0o555)
    try:
        with pytest.raises(ConflictError, match="no permission"):
            put(inspect(pinned.python), first)
    finally:
        pinned.purelib.chmod(0o755)


def test_not_writable_is_refused_before_anything(pinned: Environment, first: Path) -> None:
    with pytest.raises(ConflictError, match=r"no permission to write .* with sudo"):
        put(dataclasses.replace(pinned, writable=False), first)


def test_a_damaged_register_counts_as_none(installed: Environment) -> None:
    (installed.purelib / REGISTER).write_text("{")
    assert package.read_register(installed) == package.Register(False, ())


def test_each_installer_in_its_turn(pinned: Environment, tmp_path: Path) -> None:
    choose: Callable[..., tuple[str, list[str]]] = installer.chosen
    uv = tmp_path / "uv"
    plain = dataclasses.replace(pinned, has_ensurepip=True)
    assert choose(dataclasses.replace(plain, has_pip=True))[1][1:] == ["-m", "pip"]
    assert choose(dataclasses.replace(plain, uv=uv, has_pip=True))[0] == "pip"
    assert choose(dataclasses.replace(plain, uv=uv, has_pip=True, kind="uv"))[0] == "uv"
    assert choose(dataclasses.replace(plain, uv=uv))[0] == "uv"
    assert choose(dataclasses.replace(plain, uv=uv, kind="user-site"))[0] == "pip"
    assert choose(plain)[1][1] == "-c"


def everything(environment: Environment) -> dict[str, object]:
    """Every file below the environment with its bytes; folders too."""
    found = environment.prefix.rglob("*")
    return {str(path): path.read_bytes() if path.is_file() else "" for path in found if "__pycache__" not in path.parts}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_a_full_disk_changes_nothing(
    pinned_venv: Path, installed_venv: Path, first: Path, tmp_path: Path, replacing: bool
) -> None:
    """The real pip on a disk that is full at different points of its work: exit 4, and all as it was."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        environment = quickly(inspect(copy_venv(installed_venv if replacing else pinned_venv, mount / "venv")))
        if replacing:
            (environment.purelib / "kohya_ext" / "errors.py").write_text("mine")
        before, refused = everything(environment), 0
        for pages in (0, 1, 3, 6, 10, 14, 20):
            faults.fill(mount, leave=pages)
            try:
                put(environment, first)
            except ConflictError as error:
                refused += 1
                assert error.exit_code == CONFLICT
                (mount / "filler").unlink()
                assert everything(environment) == before, pages
            else:
                break
        assert refused >= 3
        (mount / "filler").unlink(missing_ok=True)
        assert put(environment, first).action in ("installed", "replaced", "unchanged")
        assert examine(environment, importing=False).condition == "intact"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@posix_modes
def test_under_a_strict_umask_everybody_can_read_it(pinned: Environment, first: Path) -> None:
    """Root's shell with umask 077, and a GUI that runs as another user."""
    before = os.umask(0o077)
    try:
        put(pinned, first)
    finally:
        os.umask(before)
    ours = [path for path in pinned.prefix.rglob("*") if "kohya" in path.relative_to(pinned.prefix).as_posix()]
    assert len(ours) > len(SMALL)
    for path in ours:
        mode = path.stat().st_mode
        assert mode & 0o044 == 0o044, path
        assert not path.is_dir() or mode & 0o011 == 0o011, path
    assert (pinned.scripts / "kohya-ext").stat().st_mode & 0o111 == 0o111


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")
def test_an_orphaned_installer_keeps_the_lock(pinned: Environment, first: Path, tmp_path: Path) -> None:
    """We are killed and pip is not: nobody may repair what it is still writing."""
    slow = tmp_path / "uv"
    slow.write_text(f"#!/bin/sh\necho > {tmp_path}/started\nsleep 3\n")
    slow.chmod(0o755)
    environment = dataclasses.replace(pinned, uv=slow, kind="uv")
    child = os.fork()
    if child == 0:
        put(environment, first)
        os._exit(0)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with pytest.raises(ConflictError, match="is running in"), locked(first, 0.1):
        pass
    with pytest.raises(ConflictError, match="is running in"), locked(environment.purelib, 0.1):
        pass
    with locked(first, 30), locked(environment.purelib, 30):  # until it has ended
        pass
