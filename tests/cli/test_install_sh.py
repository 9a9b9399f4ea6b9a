from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core import shell
from kohya_ext.install import apply
from tests.checkout import pythons, trees
from tests.files.strangers import as_root, give

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
    expected = "[CHECKOUT] [--demo] [--yes] [--dry-run] [--uninstall] [--presets-only] [--python PATH] [--verbose]"
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


@pytest.mark.parametrize("steering", ["\n", "\r", "\x1b[2J", "\x9b", "\u202e", "\u2067"])
@pytest.mark.parametrize("words", [["--odd{}x"], ["a{}x", "b"], ["--uninstall", "--python", "/nowhere/{}x"]])
def test_what_steers_a_terminal_is_not_printed(words: list[str], steering: str) -> None:
    done = install_sh(*(word.format(steering) for word in words))
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("install.sh: ")
    assert not {*steering} & {*last} - {*"[2J"}
    assert "?x" in last or "\\nx" in last or "?[2Jx" in last


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


# ---- what must not be run, and how else it may be started

REPOSITORY = SCRIPT.parent
SHADOWING = [
    *("tomllib", "tomli", "toml", "json", "argparse", "runpy", "pkgutil", "importlib", "pathlib", "site"),
    *(
        "sitecustomize",
        "usercustomize",
        "kohya_ext/__init__",
        "kohya_ext/__main__",
        "kohya_ext/cli/main",
        "pip/__main__",
    ),
]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder to stand in, full of programs and modules that leave a mark when they are run."""
    folder = tmp_path / "hostile"
    mark = folder / "mark"
    for name in SHADOWING:
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(mark)!r}, 'a').write({name + chr(10)!r})\n")
    for name in ("python3.13", "python3", "python", "git", "bash", "dirname", "readlink", "stat", "venv/bin/python"):
        program = folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\necho program {name} >> '{mark}'\nexit 1\n")
        program.chmod(0o755)
    return folder


def started(
    command: list[str], cwd: Path, environ: Mapping[str, str] = {}, given: bytes = b""
) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(command, capture_output=True, env={**variables, **environ}, cwd=cwd, input=given, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"PYTHONPATH": "."},
        {"PYTHONPATH": ":"},
        {"PYTHONPATH": "{cwd}:../hostile:"},
        {"PATH": ".:{path}"},
        {"PATH": ":{path}"},
        {"PATH": "{path}:."},
        {"VIRTUAL_ENV": "venv"},
        {"CONDA_PREFIX": "./venv"},
        {"CDPATH": ".:/:{cwd}"},
        {"PYTHONSTARTUP": "json.py", "PYTHONINSPECT": ""},
    ],
)
def test_nothing_of_the_current_folder_is_run(
    make: Make, with_venv: WithVenv, hostile: Path, variables: dict[str, str]
) -> None:
    """It may be the root of a user's tree, or a download folder."""
    checkout = with_venv(make("embedded"))
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    filled = {name: value.format(cwd=hostile, path=path) for name, value in variables.items()}
    done = started(["/bin/bash", str(SCRIPT), str(checkout.root), "--yes"], hostile, filled)
    assert done.returncode == 0, done.stderr
    assert not (hostile / "mark").exists(), (hostile / "mark").read_text()
    for printed in (shell.command("status"), shell.command("install")):
        started([*shlex.split(printed), str(checkout.root)], hostile, filled)
        if "PATH" not in variables and "PYTHONPATH" not in variables:
            assert not (hostile / "mark").exists(), (hostile / "mark").read_text()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of ours at a path that is not plain."""
    folder = tmp_path / "cl one ü $HOME 'x'"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    for name in ("kohya_ext", "patches", "presets"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_clone_that_is_named_is_the_one_that_runs(clone: Path, hostile: Path) -> None:
    """From within an old clone, `../new/install.sh` is the new one."""
    (clone / "kohya_ext/core/about.py").write_text(
        (clone / "kohya_ext/core/about.py").read_text().replace("VERSION = ", 'VERSION = "99.9" or ')
    )
    assert 'VERSION = "99.9"' in (clone / "kohya_ext/core/about.py").read_text()
    old = hostile
    printed = shlex.quote(f"../{clone.name}/install.sh")
    done = started(["/bin/bash", "-c", f"{printed} --dry-run /nowhere"], old)
    assert done.returncode == 3
    assert not (old / "mark").exists()
    runner = started(
        ["/bin/bash", "-c", f"exec python ../{shlex.quote(clone.name)}/kohya_ext/__main__.py --version"], old
    )
    assert "99.9" in runner.stdout


@pytest.mark.parametrize("how", ["relative link", "chain", "CDPATH", "sh", "sh relative", "posix", "from its folder"])
def test_other_ways_to_start_it(clone: Path, hostile: Path, how: str) -> None:
    (hostile / "link").symlink_to(os.path.relpath(clone / "install.sh", hostile))
    (hostile.parent / "second").symlink_to(hostile / "link")
    (hostile / "name").mkdir()
    command = {
        "relative link": ["/bin/bash", "./link"],
        "chain": ["/bin/bash", "../second"],
        "CDPATH": ["/bin/bash", f"../{clone.name}/install.sh"],
        "sh": ["sh", str(clone / "install.sh")],
        "sh relative": ["sh", f"../{clone.name}/install.sh"],
        "posix": ["/bin/bash", "--posix", str(clone / "install.sh")],
        "from its folder": ["/bin/sh", "install.sh"],
    }[how]
    cwd = clone if how == "from its folder" else hostile
    done = started([*command, "/nowhere"], cwd, {"CDPATH": f"{clone.parent}:."} if how == "CDPATH" else {})
    assert done.returncode == 3, done.stderr
    assert "/nowhere: no such folder" in done.stderr
    assert not (hostile / "mark").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["sh"],
        ["sh", "-s", "--", "/nowhere"],
        ["/bin/sh"],
        ["/bin/bash"],
        ["/bin/bash", "-s", "--", "/nowhere"],
        ["/bin/bash", "-c", "source {script}"],
        ["/bin/bash", "-c", 'eval "$(cat {script})"'],
        ["/bin/bash", "-c", "bash <(cat {script})"],
        ["/bin/bash", "{copy}"],
    ],
)
def test_where_it_cannot_work_one_line_says_so(hostile: Path, tmp_path: Path, command: list[str]) -> None:
    shutil.copy(SCRIPT, tmp_path / "alone.sh")
    filled = [word.format(script=shlex.quote(str(SCRIPT)), copy=tmp_path / "alone.sh") for word in command]
    (hostile / "sh").write_text(f"#!/bin/sh\necho sh >> '{hostile / 'mark'}'\n")
    (hostile / "bash").unlink()
    done = started(filled, hostile, given=SCRIPT.read_bytes())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("install.sh: ") and "/path/to/the/clone/install.sh" in line
    assert not (hostile / "mark").exists()


def test_sourced_it_does_not_end_the_shell() -> None:
    done = started(["/bin/bash", "-c", f"source {SCRIPT}; echo still here"], SCRIPT.parent)
    assert "still here" in done.stdout


def reachable_python() -> Path:
    """A Python that every user may start: that of the tests may be in a home."""
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python3.10"):
        path = Path("/usr/bin", name)
        code = "import sys; sys.exit(sys.version_info < (3, 10))"
        if path.exists() and subprocess.run([str(path), "-c", code], check=False).returncode == 0:
            return path
    pytest.skip("needs a Python >= 3.10 in /usr/bin, which another user can start")


@as_root
@pytest.mark.parametrize("which", ["venv", "bin", "python", "named", "active"])
def test_root_runs_no_python_of_another_user(make: Make, public: Path, which: str) -> None:
    """Whoever owns a Python decides what it does: it is asked as that user, and the installer runs on another one."""
    base = reachable_python()
    checkout = describe(trees.copy(make("embedded").root, public / "checkout"))
    notes = public / "notes"
    notes.touch()
    notes.chmod(0o666)
    folder = (public / "elsewhere") if which in ("named", "active") else checkout.root / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    (folder / "bin/python").symlink_to(base)
    version = subprocess.run([str(folder / "bin/python"), "-V"], capture_output=True, text=True, check=True).stdout
    site = folder / f"lib/python3.{version.split('.')[1]}/site-packages"
    pythons.pretend(site, pythons.KOHYA)
    note = f"import os; file = open({str(notes)!r}, 'a'); file.write(f'{{os.geteuid()}}\\n'); file.close()\n"
    (site / "note.pth").write_text(note)
    give(folder)
    if which in ("bin", "python"):
        for path in (folder, *folder.rglob("*")):
            if path != (folder / "bin" if which == "bin" else folder / "bin/python"):
                os.chown(path, 0, 0, follow_symlinks=False)
        if which == "python":  # no link, but a program of theirs
            (folder / "bin/python").unlink()
            (folder / "bin/python").write_text(f'#!/bin/sh\nid -u >> {notes}\nexec {base} "$@"\n')
            (folder / "bin/python").chmod(0o755)
            os.chown(folder / "bin/python", 65534, 65534)
    environ = {"VIRTUAL_ENV": str(folder)} if which == "active" else {}
    given = ["--python", str(folder)] if which == "named" else []
    done = started(["/bin/bash", str(SCRIPT), str(checkout.root), "--yes", *given], public, environ)
    assert set(notes.read_text().split()) == {"65534"}, done.stderr + done.stdout
    if done.returncode == 0:
        assert {path.stat().st_uid for path in site.glob("kohya_ext*")} == {65534}
