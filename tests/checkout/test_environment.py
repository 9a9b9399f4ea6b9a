from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.checkout.environment import FoundEnvironment, clean_environ, inspect, search
from kohya_ext.core.errors import WRONG_USAGE, UsageError
from tests import systems
from tests.checkout import trees
from tests.checkout.pythons import BASE_PYTHON, KOHYA, SITE, copy_venv, make_system_python, make_venv, pretend, process
from tests.files.strangers import as_root, as_stranger

Make = Callable[..., Checkout]


@pytest.fixture(scope="session")
def bare_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it, to copy."""
    return make_venv(tmp_path_factory.mktemp("pythons") / "bare").parent.parent


@pytest.fixture
def venv(bare_venv: Path) -> Callable[..., Path]:
    """A fresh environment at a folder, with Kohya's packages unless others are named; its interpreter."""

    def build(folder: Path, packages: Mapping[str, str] = KOHYA) -> Path:
        python = copy_venv(bare_venv, folder)
        pretend(folder / SITE, packages)
        return python

    return build


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "machine" / "proc").mkdir(parents=True)
    return tmp_path / "machine"


def look(
    machine: Path, checkout: Checkout, argument: Path | None = None, fallback: Path | None = None, **environ: str
) -> FoundEnvironment:
    return search(
        checkout,
        str(argument) if argument else None,
        {"PATH": str(machine), **environ},
        proc_root=machine / "proc",
        prefix=machine,
        fallback=fallback,
    )


def test_what_an_environment_is(tmp_path: Path, venv: Callable[..., Path]) -> None:
    python = venv(tmp_path / "v", {**KOHYA, "Some_Thing.x": "3.4", "numpy": "1.26.4"})
    found = inspect(python)
    assert found.python == python
    assert found.kind == "venv"
    assert found.runs_kohya
    assert found.packages == {**KOHYA, "some-thing-x": "3.4", "numpy": "1.26.4"}
    assert found.modules["torch"] and not found.modules["scipy"]
    assert found.purelib == tmp_path / "v" / SITE
    assert not found.has_pip
    assert found.writable
    assert tuple(int(part) for part in found.version.split(".")) == sys.version_info[:3]


def test_an_environment_made_by_uv(tmp_path: Path) -> None:
    assert inspect(make_venv(tmp_path / ".venv", by_uv=True)).kind == "uv"


def test_a_conda_environment(tmp_path: Path, bare_venv: Path) -> None:
    """conda has no pyvenv.cfg; its prefix holds conda-meta. Shown with a script that answers as such a Python does."""
    answer = (
        '{"version": "3.10.9", "prefix": "/opt/conda", "in_venv": false, "made_by_uv": false, "conda": true, '
        '"externally_managed": false, "purelib": "/opt/conda/lib", "usersite": "/root/u", "scripts": "/opt/conda/bin", '
        '"packages": {}, "modules": {"pip": true, "ensurepip": true}}'
    )
    assert inspect(_script(tmp_path / "python", f"echo '{answer}'")).kind == "conda"


def test_a_folder_is_taken_for_the_environment_in_it(tmp_path: Path, venv: Callable[..., Path]) -> None:
    python = venv(tmp_path / "v")
    assert inspect(tmp_path / "v").python == python


def test_our_own_variables_do_not_leak_into_the_answer(
    tmp_path: Path, venv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path / "elsewhere", {"scipy": "1.0"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_TARGET", "/nowhere")
    assert not inspect(venv(tmp_path / "v")).modules["scipy"]
    assert not {"PYTHONPATH", "PIP_TARGET"} & clean_environ().keys()
    assert clean_environ("/home/x")["HOME"] == "/home/x"


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


PYENV = """pyenv: python3.9: command not found

The `python3.9' command exists in these Python versions:
  3.9.18

Note: See 'pyenv help global' for tips on allowing multiple
      Python versions to be found at the same time.
"""
TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
OSError: no such thing
note: a line that was added
"""


def _pipe(path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(path, 0o755)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "absent", "no such file"),
        (lambda folder: folder, "has no Python in it"),
        (lambda folder: _plain(folder / "python"), "cannot be run" if systems.WINDOWS else "not executable"),
        (lambda folder: _script(folder / "python", "echo hello"), "not a working Python"),
        (lambda folder: _script(folder / "python", "echo broken >&2; exit 3"), "broken"),
        (lambda folder: _script(folder / "python", "echo '[]'"), "not a working Python"),
        (lambda folder: _script(folder / "python", "printf '\\377\\n'"), "not a working Python"),
        (
            lambda folder: _script(folder / "python", f"cat >&2 <<'E'\n{PYENV}E\nexit 127"),
            "says: pyenv: python3.9",
        ),
        (lambda folder: _script(folder / "python", f"cat >&2 <<'TEXT'\n{TRACEBACK}TEXT\nexit 1"), "says: OSError: no"),
        (lambda folder: _pipe(folder / "python"), "is a pipe, not a file"),
        (lambda folder: _script(folder / "python", """echo '{"version": "3.9.18"}'"""), "Python 3.9.18; .* 3.10"),
    ],
    ids=[
        "absent",
        "folder",
        "not-executable",
        "no-python",
        "fails",
        "odd",
        "not-text",
        "pyenv",
        "traceback",
        "pipe",
        "old",
    ],
)
def test_a_wrong_python_is_wrong_usage(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        inspect(make(tmp_path))
    assert error.value.exit_code == WRONG_USAGE


def _plain(path: Path) -> Path:
    path.write_text("")
    return path


def test_the_argument_is_taken_even_without_torch_but_with_a_warning(
    make: Make, machine: Path, venv: Callable[..., Path]
) -> None:
    checkout = make("embedded")
    venv(checkout.root / "venv")
    named = venv(machine / "named", {})
    found = look(machine, checkout, named)
    assert found.environment.python == named
    assert "no torch and no accelerate" in found.warnings[0]


def test_the_one_with_torch_wins_inside_the_checkout(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    checkout = make("embedded")
    venv(checkout.root / "venv", {})
    good = venv(checkout.root / ".venv")
    found = look(machine, checkout)
    assert found.environment.python == good
    assert "venv exists as well" in found.warnings[0]


def test_the_running_gui_says_what_it_runs_in(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    checkout = make("embedded")
    venv(checkout.root / "venv")
    used = venv(machine / "elsewhere")
    environ = {"PATH": f"{used.parent}:/usr/bin", "VIRTUAL_ENV": str(used.parent.parent)}
    process(machine / "proc", 41, ["python", "kohya_gui.py"], checkout.root, environ)
    found = look(machine, checkout)
    assert found.environment.python == used
    assert "41" in found.how


def test_the_running_gui_of_another_checkout_says_nothing(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    checkout, other = make("embedded", "mine"), make("embedded", "other")
    mine = venv(checkout.root / "venv")
    used = venv(machine / "elsewhere")
    process(machine / "proc", 41, [str(used), "kohya_gui.py"], other.root)
    assert look(machine, checkout).environment.python == mine


def test_uv_run_shows_itself_and_the_python_it_started(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    checkout = make("embedded")
    used = venv(checkout.root / ".venv")
    environ = {"VIRTUAL_ENV": ".venv", "PATH": "/usr/bin"}
    process(machine / "proc", 40, ["uv", "run", "kohya_gui.py"], checkout.root, environ, Path("/usr/bin/uv"))
    process(machine / "proc", 41, ["python3", "kohya_gui.py"], checkout.root, environ)
    assert look(machine, checkout).environment.python == checkout.root / ".venv" / "bin" / "python"
    assert used.exists()


def test_a_gui_in_a_home_of_its_own(make: Make, machine: Path) -> None:
    """Containers of v23 and v24: the system's Python, Kohya's packages in a user's ~/.local."""
    checkout = make("submodule")
    site = machine / "home" / "1000" / ".local" / SITE
    pretend(site, KOHYA)
    environ = {"HOME": str(machine / "home" / "1000"), "PATH": "/usr/bin"}
    process(machine / "proc", 41, [str(BASE_PYTHON), "./kohya_gui.py"], checkout.root, environ)
    environment = look(machine, checkout, HOME="/root").environment
    assert (environment.kind, environment.purelib) == ("user-site", site)
    assert environment.home == str(machine / "home" / "1000")


@pytest.mark.parametrize(
    "place",
    ["venv/main", "opt/environments/python/kohya", "venvs/kohya_ss", "venv", "workspace/environments/python/kohya"],
)
def test_the_places_of_the_templates(make: Make, machine: Path, venv: Callable[..., Path], place: str) -> None:
    python = venv(machine / place)
    assert look(machine, make("submodule")).environment.python == python


def test_a_linked_environment_keeps_its_name(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    """/venv/main may link into the synchronised workspace: the path that the template uses is the one to show."""
    venv(machine / "workspace" / "hash" / "main")
    (machine / "venv").mkdir()
    (machine / "venv" / "main").symlink_to(machine / "workspace" / "hash" / "main")
    found = look(machine, make("embedded")).environment
    assert found.python == machine / "venv" / "main" / "bin" / "python"
    assert found.runs_kohya


def test_the_checkouts_own_comes_before_the_active_one(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    checkout = make("embedded")
    active = venv(machine / "active")
    assert look(machine, checkout, VIRTUAL_ENV=str(machine / "active")).environment.python == active
    own = venv(checkout.root / "venv")
    assert look(machine, checkout, VIRTUAL_ENV=str(machine / "active")).environment.python == own


def test_an_active_conda_wins_where_gui_sh_says_so(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    checkout = make("submodule")
    own, conda = venv(checkout.root / "venv"), venv(machine / "conda")
    assert look(machine, checkout, CONDA_PREFIX=str(machine / "conda")).environment.python == own
    (checkout.root / "gui.sh").write_text('if [ -n "$CONDA_PREFIX" ]; then\n')
    assert look(machine, checkout, CONDA_PREFIX=str(machine / "conda")).environment.python == conda


def test_without_torch_anywhere_the_best_is_taken_with_a_warning(
    make: Make, machine: Path, venv: Callable[..., Path]
) -> None:
    checkout = make("embedded")
    own = venv(checkout.root / "venv", {})
    found = look(machine, checkout, fallback=make_system_python(machine / "system"))
    assert found.environment.python == own
    assert "no torch" in found.warnings[0]


def test_a_systems_python_without_torch_is_never_taken(make: Make, machine: Path) -> None:
    system = make_system_python(machine / "system")
    with pytest.raises(UsageError, match=r"no Python with torch and accelerate found.*--python"):
        look(machine, make("embedded"), PATH=str(system.parent), fallback=system)


def test_the_python_of_the_installer_is_the_last_resort(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    own = venv(machine / "installer", {})
    assert look(machine, make("bare"), fallback=own).environment.python == own


def test_a_broken_environment_is_passed_over(make: Make, machine: Path, venv: Callable[..., Path]) -> None:
    """A venv/ copied from another machine: its interpreter links to nothing."""
    checkout = make("embedded")
    for link in venv(checkout.root / "venv").parent.glob("python*"):
        link.unlink()
        link.symlink_to("/nowhere/python3")
    good = venv(machine / "venv" / "main")
    assert look(machine, checkout).environment.python == good


ANSWER = (
    '{"version": "3.10.9", "prefix": "/opt/kohya", "in_venv": true, "made_by_uv": false, "conda": false, '
    '"externally_managed": false, "purelib": "/opt/kohya/lib", "usersite": null, "scripts": "/opt/kohya/bin", '
    '"packages": {}, "modules": {"pip": true, "ensurepip": true, "torch": true, "accelerate": true}}'
)


@as_root
@pytest.mark.parametrize("closed", ["", "venv", "venv/bin", "venv/bin/python"])
def test_what_this_user_may_not_read_is_skipped(templates: dict[str, Path], public: Path, closed: str) -> None:
    """$VIRTUAL_ENV of root's shell in a shell of somebody else; an interpreter that only its owner may run."""
    checkout = describe(trees.copy(templates["embedded"], public / "checkout"))
    for folder in ("private/venv/bin", "venv/main/bin", "proc"):
        (public / folder).mkdir(parents=True)
    good = _script(public / "venv/main/bin/python", f"echo '{ANSWER}'")
    private = _script(public / "private/venv/bin/python", f"echo '{ANSWER}'")
    (public / "private" / closed).chmod(0o700)

    def action() -> None:
        found = look(public, checkout, VIRTUAL_ENV=str(public / "private/venv"))
        assert found.environment.python == good, found
        with pytest.raises(UsageError, match=r"no permission to read|not executable"):
            look(public, checkout, private)

    assert as_stranger(action) == 0
