"""The guard of the tests, held to what it promises. Nothing here could do harm if it failed: the places that are
reached for do not exist, or are copies."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kohya_ext.checkout import discovery
from kohya_ext.checkout import environment as environments
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import UnsupportedError, UsageError
from tests import systems
from tests.checkout import trees
from tests.checkout.conftest import make, templates  # noqa: F401 - fixtures
from tests.checkout.pythons import KOHYA, SITE, make_venv, pretend
from tests.conftest import isolation
from tests.isolation import REPOSITORY, guard

Make = Callable[..., Checkout]
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
PYTESTS_FOLDER = Path(pytest.__file__).parents[1]  # which the session's PYTHONPATH may have led to
OUTSIDE = REPOSITORY / "nobody-may-write-here"

IN_PROCESS: dict[str, Callable[[], object]] = {
    "open": lambda: OUTSIDE.write_text("x"),
    "os.open": lambda: os.open(OUTSIDE, os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda: OUTSIDE.mkdir(),
    "makedirs": lambda: (OUTSIDE / "a" / "b").mkdir(parents=True),
    "symlink": lambda: OUTSIDE.symlink_to("x"),
    "remove": lambda: OUTSIDE.unlink(),
    "rmdir": lambda: OUTSIDE.rmdir(),
    "chmod": lambda: OUTSIDE.chmod(0o600),
    "utime": lambda: os.utime(OUTSIDE),
    "truncate": lambda: os.truncate(OUTSIDE, 0),
    "copy": lambda: shutil.copy(__file__, OUTSIDE),
    "copytree": lambda: shutil.copytree(Path(__file__).parent / "guard", OUTSIDE),
    "processes": lambda: list(Path("/proc").iterdir()),
    "a process": lambda: Path("/proc/1/cmdline").read_bytes(),
}


@pytest.mark.parametrize("name", list(IN_PROCESS))
def test_what_leaves_our_folders_is_refused_and_said(name: str) -> None:
    if name in ("processes", "a process") and (systems.WINDOWS or not Path("/proc/1").exists()):
        pytest.skip("no /proc here")
    with pytest.raises(guard.TrespassError):
        IN_PROCESS[name]()
    assert len(isolation.refused()) == 1
    assert not OUTSIDE.exists() and not OUTSIDE.is_symlink()


def test_a_link_that_leads_outside_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(OUTSIDE)
    with pytest.raises(guard.TrespassError):
        (tmp_path / "link").write_text("x")
    (tmp_path / "folder").symlink_to(REPOSITORY)
    with pytest.raises(guard.TrespassError):
        (tmp_path / "folder" / OUTSIDE.name).write_text("x")
    with pytest.raises(guard.TrespassError):
        (tmp_path / "folder" / OUTSIDE.name).rename(tmp_path / "x")
    assert len(isolation.refused()) == 3
    (tmp_path / "link").unlink()  # the link itself is ours


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="no dir_fd here")
def test_names_within_an_open_folder(tmp_path: Path) -> None:
    ours, theirs = os.open(tmp_path, os.O_RDONLY), os.open(REPOSITORY, os.O_RDONLY)
    try:
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=ours))
        os.rename("file", "other", src_dir_fd=ours, dst_dir_fd=ours)
        with pytest.raises(guard.TrespassError):
            os.open(OUTSIDE.name, os.O_CREAT | os.O_WRONLY, dir_fd=theirs)
        with pytest.raises(guard.TrespassError):
            os.rename("other", OUTSIDE.name, src_dir_fd=ours, dst_dir_fd=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert len(isolation.refused()) == 2


WRITE = f"open({str(OUTSIDE)!r}, 'w')"
CHILD = [sys.executable, "-c", WRITE]
GRANDCHILD = [
    sys.executable,
    "-c",
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WRITE!r}], env={{}})",
]


@pytest.mark.parametrize("command", [CHILD, GRANDCHILD], ids=["child", "grandchild"])
@pytest.mark.parametrize("environ", [None, {}, {"PYTHONPATH": str(REPOSITORY)}], ids=["ours", "empty", "another"])
def test_children_are_watched(command: list[str], environ: dict[str, str] | None) -> None:
    subprocess.run(command, env=environ, capture_output=True, check=False)
    assert [str(OUTSIDE) in line for line in isolation.refused()] == [True]
    assert not OUTSIDE.exists()


def test_a_swallowed_refusal_fails_the_test(tmp_path: Path) -> None:
    """Run as a session of its own, below a conftest that takes what ours has."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_it.py").write_text(
        f"import contextlib\n\ndef test_it():\n    with contextlib.suppress(Exception):\n        {WRITE}\n"
    )
    done = subprocess.run(
        [*PYTEST, f"--basetemp={tmp_path}/temporary", str(tmp_path)],
        env=outside_of_the_guard() | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(PYTESTS_FOLDER)])},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed, 1 error" in done.stdout, done.stdout
    assert str(OUTSIDE) in done.stdout


def test_variables_lead_to_folders_of_the_session() -> None:
    own = str(isolation.folder)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "KOHYA_EXT_MACHINE"):
        assert os.environ[name].startswith(own), name
    assert str(Path.home()).startswith(own)
    assert not {"VIRTUAL_ENV", "CONDA_PREFIX", "WORKSPACE", "PYTHONHOME"} & os.environ.keys()


def test_nothing_of_this_machine_is_found(make: Make, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UnsupportedError):
        discovery.search(None, os.environ, cwd=tmp_path)
    with pytest.raises(UsageError):
        environments.search(make("embedded"), None, os.environ, fallback=Path(sys.executable))


def outside_of_the_guard() -> dict[str, str]:
    """The variables of a person who starts the tests on a machine."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("KOHYA_EXT_") and name != "PYTHONPATH"
    }


@contextmanager
def running_gui(root: Path, python: Path) -> Iterator[None]:
    """A real process that looks as a GUI does; it does nothing."""
    (root / "kohya_gui.py").write_text("print('running', flush=True)\nimport sys\nsys.stdin.read()\n")
    process = subprocess.Popen(
        [str(python), "kohya_gui.py"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        yield
    finally:
        process.communicate("")


def everything(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.skipif(systems.WINDOWS or not Path("/proc/self/cwd").exists(), reason="running GUIs are found by /proc")
def test_our_tests_beside_a_running_gui_leave_it_alone(make: Make, tmp_path: Path) -> None:  # noqa: F811
    """Once they emptied two files of our package in the environment of the live installation."""
    live, standing = make("submodule", "live").root, make("submodule", "standing").root
    python = make_venv(live / "venv", KOHYA)
    package = live / "venv" / SITE / "kohya_ext"
    pretend(live / "venv" / SITE, {"scipy": "1.11.4"})
    for name in ("__init__.py", "runtime/__init__.py"):
        trees.write(package, {name: "# ours, in use\n"})
    with running_gui(live, python):
        before = everything(tmp_path)
        done = subprocess.run(
            [*PYTEST, "--rootdir", str(REPOSITORY),
             f"{REPOSITORY}/tests/cli/test_install.py::test_the_current_folder_is_found",
             f"{REPOSITORY}/tests/cli/test_install_sh.py::test_from_inside_the_checkout"],
            cwd=standing, env=outside_of_the_guard(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert everything(tmp_path) == before
    assert done.returncode == 0, done.stdout
