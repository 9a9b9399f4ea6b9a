"""The layouts of the deployment templates, rebuilt below a pretended machine: our part is found there, the Python is
the one that runs Kohya, and `status` is true after each template's own way to update."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.core.errors import CONFLICT, DONE, FOUND_PROBLEMS
from kohya_ext.install import apply
from tests.checkout import trees
from tests.checkout.pythons import BASE_PYTHON, KOHYA, SITE, copy_venv, make_system_python, pretend, process
from tests.cli.conftest import Ran
from tests.systems import IS_ROOT

Run = Callable[..., Ran]
PACKAGES = {**KOHYA, "diffusers": "0.25.0", "safetensors": "0.4.2", "toml": "0.10.2", "gradio": "4.43.0"}


class Machine:
    """A pretended machine. run: a command line on it, in the folder `cwd`."""

    def __init__(
        self, folder: Path, run: Run, templates: dict[str, Path], venv: Path, patch: pytest.MonkeyPatch
    ) -> None:
        self.root, self._run, self._templates, self._venv, self._patch = folder, run, templates, venv, patch
        (folder / "proc").mkdir(parents=True)
        patch.setenv("KOHYA_EXT_MACHINE", str(folder))
        patch.setenv("HOME", str(folder / "root"))
        for name in ("root", "workspace"):
            (folder / name).mkdir()

    def tree(self, place: str, era: str = "submodule") -> Path:
        """A pristine checkout at `place`."""
        return trees.copy(self._templates[era], self.root / place)

    def environment(self, place: str) -> Path:
        """Kohya's Python, as its image brings it, fresh."""
        shutil.rmtree(self.root / place, ignore_errors=True)
        return copy_venv(self._venv, self.root / place)

    def run(self, *words: object, cwd: str | Path = "root") -> Ran:
        self._patch.chdir(self.root / cwd)
        return self._run(*words)

    def install(self, root: Path, python: Path, *, cwd: str | Path = "root") -> None:
        """Install without naming anything; it must find these two."""
        done = self.run("install", "--yes", cwd=cwd)
        assert done.code == DONE, done.errors
        assert f"checkout     {root} (" in done.text
        assert f"environment  {python} (" in done.text
        assert (self._site(python) / "kohya_ext" / "__init__.py").is_file()
        self.is_well(root)

    def is_well(self, root: Path) -> None:
        done = self.run("status", root)
        assert done.code == DONE, done.text + done.errors
        assert apply.installed(describe(root)) is not None

    def is_unwell(self, root: Path) -> None:
        """Something is gone, and `status` says so."""
        done = self.run("status", root)
        assert done.code == FOUND_PROBLEMS, done.text
        said = done.text.partition("PROBLEM")[2]
        assert "install" in said and str(root) in said

    def leaves_nothing(self, root: Path, before: object, *, cwd: str | Path | None = None) -> None:
        done = self.run("uninstall", "--yes", cwd=cwd or root)
        assert done.code == DONE, done.errors
        assert trees.whole(root) == before

    @staticmethod
    def _site(python: Path) -> Path:
        return python.parent.parent / SITE


@pytest.fixture
def machine(
    public: Path, run: Run, templates: dict[str, Path], kohya_venv: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    """In a folder that every user may reach: the owner of a checkout is not always who runs the tests."""
    return Machine(public / "machine", run, templates, kohya_venv, monkeypatch)


def newer(root: Path) -> None:
    """A later release of the same tree, committed."""
    trees.write(root, {".release": "v25.2.2", "kohya_gui/new.py": ""})
    trees.commit(root, "v25.2.2")


# ---- vast.ai: the image keeps a copy inside, the workspace gets it at the first boot


def first_boot(machine: Machine) -> tuple[Path, Path]:
    machine.tree("opt/workspace-internal/kohya_ss")
    inside, kept = machine.root / "opt/workspace-internal/kohya_ss", machine.root / "workspace/kohya_ss"
    if not kept.exists():
        shutil.copytree(inside, kept, symlinks=True)
    trees.write(machine.root, {"opt/supervisor-scripts/kohya.sh": "", ".provisioning": ""})
    return kept, machine.environment("venv/main")


def test_vast_while_it_provisions(machine: Machine) -> None:
    root, python = first_boot(machine)
    before = trees.whole(root)
    done = machine.run("install", root, "--yes")
    assert "No restart needed" in done.text
    (machine.root / ".provisioning").unlink()
    machine.install(root, python, cwd="workspace")
    assert trees.whole(machine.root / "opt/workspace-internal/kohya_ss") == before
    machine.leaves_nothing(root, before)


def test_vast_created_anew_on_a_kept_workspace(machine: Machine) -> None:
    root, python = first_boot(machine)
    machine.install(root, python)
    shutil.rmtree(machine.root / "opt")
    assert first_boot(machine) == (root, python)
    machine.is_unwell(root)
    machine.install(root, python)


def test_vast_with_its_environment_in_the_workspace(machine: Machine) -> None:
    """--sync-environment: /venv/main links into the workspace; the template's name for it is the one to show."""
    root, python = first_boot(machine)
    synced = machine.root / "workspace/.environment_sync/abc/venv/main"
    synced.parent.mkdir(parents=True)
    (machine.root / "venv/main").rename(synced)
    (machine.root / "venv/main").symlink_to(synced)
    machine.install(root, python)
    assert (synced / SITE / "kohya_ext").is_dir()


def test_vast_after_git_pull(machine: Machine) -> None:
    root, python = first_boot(machine)
    machine.install(root, python)
    newer(machine.root / "opt/workspace-internal/kohya_ss")
    trees.git(root, "pull", "-q", str(machine.root / "opt/workspace-internal/kohya_ss"), "HEAD")
    assert (root / "kohya_gui/new.py").exists()
    assert machine.run("install", "--yes").code == DONE  # presets of the new release
    machine.is_well(root)


# ---- RunPod (ashleykza): the image's copy is synchronised into the workspace


def rsync_update(source: Path, target: Path) -> None:
    """What `rsync -rlptDu` does: missing and older files are replaced, nothing is removed."""
    for folder, _, files in os.walk(source):
        into = target / Path(folder).relative_to(source)
        into.mkdir(exist_ok=True)
        for name in files:
            ours, theirs = into / name, Path(folder, name)
            if not ours.exists() or ours.stat().st_mtime < theirs.stat().st_mtime:
                shutil.copy2(theirs, ours)


def touched(root: Path, seconds: float) -> None:
    """Every file `seconds` from now."""
    for path in root.rglob("*"):
        if path.is_file():
            when = path.stat().st_mtime + seconds
            os.utime(path, (when, when))


def runpod(machine: Machine) -> tuple[Path, Path, Path]:
    image, root = machine.tree("kohya_ss"), machine.tree("workspace/kohya_ss")
    trees.write(machine.root, {"start_kohya_ss.sh": ""})
    return image, root, machine.environment("venv")


def test_runpod_and_a_new_pod(machine: Machine) -> None:
    _, root, python = runpod(machine)
    before = trees.whole(root)
    machine.install(root, python, cwd="workspace")
    assert "/start_kohya_ss.sh" in machine.run("install", root, "--yes").text
    machine.environment("venv")
    machine.is_unwell(root)
    machine.install(root, python)
    machine.leaves_nothing(root, before)


def test_runpods_upgrade_of_the_template(machine: Machine) -> None:
    """Newer files win: what we changed goes with the new image's copy of it, and stays with an old one's."""
    image, root, python = runpod(machine)
    machine.install(root, python)
    touched(image, -10_000)
    rsync_update(image, root)
    machine.is_well(root)
    newer(image)
    touched(image, 20_000)
    expected = trees.snapshot(image)
    rsync_update(image, root)
    machine.is_unwell(root)
    machine.install(root, python)
    assert machine.run("uninstall", "--yes", cwd=root).code == DONE
    after = trees.snapshot(root)
    assert {name: after.get(name) for name in expected} == expected


# ---- ai-dock: a link, and a user and a group of its own


@pytest.mark.parametrize("linked", [False, True])
def test_ai_dock(machine: Machine, linked: bool) -> None:
    root = machine.tree("workspace/kohya_ss" if linked else "opt/kohya_ss")
    if linked:
        (machine.root / "opt").mkdir()
        (machine.root / "opt/kohya_ss").symlink_to(root)
    trees.write(machine.root, {"etc/kohya_ss_args.conf": ""})
    python = machine.environment("opt/environments/python/kohya")
    before = trees.whole(root)  # git as root, which leaves an index of root's
    owner = (1000, 1111) if IS_ROOT else (os.geteuid(), os.getegid())
    for path in (root, *root.rglob("*")):
        os.chown(path, *owner, follow_symlinks=False)
    machine.install(root, python)
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in root.rglob("*")} == {owner}
    # its own update, at every start
    trees.git(root, "stash")
    trees.git(root, "checkout", "-q", "master")
    machine.is_well(root)
    machine.leaves_nothing(root, before)


def test_ai_docks_environment_in_the_workspace_comes_first(machine: Machine) -> None:
    root = machine.tree("opt/kohya_ss")
    machine.environment("opt/environments/python/kohya")
    machine.install(root, machine.environment("workspace/environments/python/kohya"))


# ---- Docker: no git, no pip, a user's own packages


def container(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The checkout, and the site-packages of user 1000, whose GUI runs."""
    root = machine.tree("app")
    for git_file in (root / ".git", root / "sd-scripts" / ".git"):
        shutil.rmtree(git_file) if git_file.is_dir() else git_file.unlink()
    trees.write(machine.root, {".dockerenv": ""})
    home = machine.root / "home" / "1000"
    site = home / ".local" / SITE
    pretend(site, {**PACKAGES, "scipy": "1.11.4"})
    monkeypatch.setenv("PATH", f"{machine.root / 'usr/bin'}{os.pathsep}{os.environ['PATH']}")
    make_user_python(machine.root / "usr/bin")
    process(
        machine.root / "proc", 7, ["python3", "kohya_gui.py", "--headless"], root,
        {"HOME": str(home), "PATH": str(machine.root / "usr/bin")},
    )  # fmt: skip
    return root, site


def make_user_python(folder: Path) -> Path:
    """A system's Python that sees its user's packages and nothing of this machine's."""
    python = make_system_python(folder)
    script = "import site, sys; site.ENABLE_USER_SITE = True; site.addsitedir(site.getusersitepackages())"
    folder.joinpath("startup.py").write_text(script + "\n")
    assert BASE_PYTHON.exists()
    python.write_text(f'#!/bin/sh\nexec {BASE_PYTHON} "$@"\n')
    return python


def test_docker(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    root, site = container(machine, monkeypatch)
    before = trees.snapshot(root)
    done = machine.run("install", "--yes")
    assert done.code == DONE, done.errors
    assert f"checkout     {root} (" in done.text
    assert (site / "kohya_ext" / "__init__.py").is_file()
    assert "docker compose restart" in done.text
    machine.is_well(root)
    assert machine.run("uninstall", "--yes", cwd=root).code == DONE
    assert trees.snapshot(root) == before


def test_docker_after_a_rebuilt_image(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    root, site = container(machine, monkeypatch)
    assert machine.run("install", "--yes").code == DONE
    shutil.rmtree(site / "kohya_ext")
    shutil.rmtree(next(site.glob("kohya_ext-*.dist-info")))
    machine.is_unwell(root)


@pytest.mark.skipif(IS_ROOT, reason="root writes to read-only folders; tests/install/test_forms.py does it as nobody")
def test_docker_read_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    root, site = container(machine, monkeypatch)
    before = trees.snapshot(root), trees.snapshot(site)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    try:
        done = machine.run("install", "--yes")
    finally:
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
    assert done.code == CONFLICT
    assert (trees.snapshot(root), trees.snapshot(site)) == before


# ---- uv, codechips


@pytest.mark.parametrize("place", ["anywhere/kohya_ss", "opt/kohya_ss"])
def test_uv(machine: Machine, place: str) -> None:
    """`uv sync` makes the environment what the lock says: all that we put there goes. (codechips: /opt, with a folder
    of data in the workspace that is named as the checkout is.)"""
    root = machine.tree(place)
    for name in ("models", "outputs", "dataset"):
        (machine.root / "workspace/kohya_ss" / name).mkdir(parents=True)
    (root / ".git/info/exclude").write_text("/.venv\n")
    python = machine.environment(f"{place}/.venv")
    with (root / ".venv/pyvenv.cfg").open("a") as config:
        config.write("uv = 0.5.1\n")
    machine.install(root, python, cwd="root" if place.startswith("opt") else place)
    for gone in (root / ".venv" / SITE).glob("kohya_ext*"):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    machine.is_unwell(root)
    machine.install(root, python, cwd=root)


# ---- desktops


@pytest.mark.parametrize(
    "place", ["root/StabilityMatrix/Data/Packages/kohya_ss", "root/StabilityMatrix/Packages/kohya_ss"]
)
def test_stability_matrix(machine: Machine, place: str) -> None:
    root = machine.tree(place)
    (root / ".git/info/exclude").write_text("/venv\n")
    python = machine.environment(f"{place}/venv")
    before = trees.whole(root)
    machine.install(root, python)
    origin = machine.tree("origin")
    trees.git(root, "fetch", "-q", str(origin), "HEAD")
    trees.git(root, "reset", "-q", "--hard", "FETCH_HEAD")
    machine.is_well(root)
    machine.leaves_nothing(root, before)


@pytest.mark.parametrize("inside", ["kohya_ss", "app", "app/kohya_ss"])
@pytest.mark.parametrize("environment", ["env", "venv"])
def test_pinokio(machine: Machine, inside: str, environment: str) -> None:
    launcher = machine.root / "root/pinokio/api/kohya.pinokio.git"
    trees.write(launcher.parent, {"comfy.git/app/main.py": "", "another.git/pinokio.js": ""})
    root = machine.tree(f"root/pinokio/api/{launcher.name}/{inside}")
    python = machine.environment(f"root/pinokio/api/{launcher.name}/{environment}")
    machine.install(root, python)
    machine.install(root, python, cwd=launcher)
    newer(origin := machine.tree("origin"))
    trees.git(root, "pull", "-q", str(origin), "HEAD")
    assert machine.run("install", root, "--yes").code == DONE
    machine.is_well(root)


# ---- what brings an sd-scripts of its own


@pytest.mark.parametrize("with_git", [True, False])
@pytest.mark.parametrize(
    ("scripts", "environment"),
    [
        ("LoRA_Easy_Training_Scripts/backend/sd_scripts", "LoRA_Easy_Training_Scripts/backend/venv"),
        ("LoRA_Easy_Training_Scripts/sd_scripts", "LoRA_Easy_Training_Scripts/sd_scripts/venv"),
        ("lora-scripts/scripts/stable", "lora-scripts/venv"),
        ("fluxgym/sd-scripts", "fluxgym/env"),
    ],
)
def test_derivatives(machine: Machine, scripts: str, environment: str, with_git: bool) -> None:
    top = machine.root / "root" / scripts.split("/")[0]
    root = machine.tree(f"root/{scripts}", "bare")
    python = machine.environment(f"root/{environment}")
    if with_git:
        trees.git(top, "init", "-q")
        machine.install(root, python, cwd=top)
        assert machine.run("uninstall", "--yes", cwd=root).code == DONE
    done = machine.run("install", top, "--yes")
    assert done.code == DONE, done.errors
    assert f"checkout     {root} (" in done.text and f"environment  {python} (" in done.text


def test_lora_scripts_with_both_of_its_folders(machine: Machine) -> None:
    for name in ("stable", "dev"):
        machine.tree(f"root/lora-scripts/scripts/{name}", "bare")
    python = machine.environment("root/lora-scripts/venv")
    done = machine.run("install", machine.root / "root/lora-scripts", "--yes")
    assert done.code == 2
    assert "scripts/stable" in done.errors and "scripts/dev" in done.errors
    done = machine.run("install", machine.root / "root/lora-scripts/scripts/dev", "--yes")
    assert (done.code, f"environment  {python} (" in done.text) == (DONE, True)


def test_nothing_of_the_machine_below_ours_is_found(machine: Machine) -> None:
    """The Python that runs the tests has all that Kohya needs, and is on PATH."""
    root = machine.tree("workspace/kohya_ss")
    done = machine.run("install", "--yes")
    assert done.code == 2
    assert str(root) in done.errors and sys.executable not in done.errors
