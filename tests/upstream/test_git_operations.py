"""What people and templates do to a checkout after the install: the hook lives on, or `status` says the fix."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.upstream import trees
from tests.upstream.test_every_release import kohya_ext, porcelain, snapshot

pytestmark = pytest.mark.upstream

# a release, and a later one to move to within the same layout
MOVES = [("v21.8.0", "v22.6.2"), ("v23.0.0", "v24.1.7"), ("v24.1.7", "v26.0.0"), ("v25.2.2", "master")]
HOOKED = b"kohya_ext.runtime.activate"


def git(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "protocol.file.allow=always"]
    return subprocess.run(["git", "-C", str(root), *identity, *arguments], check=check, capture_output=True, text=True)


def with_second_revision(root: Path, other: Path) -> None:
    """Make the commits of `other` available in `root` as the tag `other`, its submodule's too: no network later."""
    git(root, "fetch", "--quiet", str(other), "HEAD:refs/tags/other")
    if (root / "sd-scripts/.git").exists() and (other / "sd-scripts/.git").exists():
        git(root / "sd-scripts", "fetch", "--quiet", str(other / "sd-scripts"), "HEAD:refs/tags/other")


def modules(root: Path) -> dict[str, tuple[str, int]]:
    """Python files only: git itself writes others with the line ends that `.gitattributes` asks for."""
    return {path: entry for path, entry in snapshot(root).items() if path.endswith(".py")}


def hooked(root: Path) -> bool:
    training = root / "sd-scripts" if (root / "kohya_gui").is_dir() else root
    files = [training / "library/__init__.py"]
    if training != root:
        files.append(root / "kohya_gui/__init__.py")
    return all(HOOKED in file.read_bytes() for file in files)


@pytest.fixture(params=MOVES, ids=lambda move: f"{move[0]}-{move[1]}")
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A checkout of the first release with the hook in it, and a clean one of the second."""
    root = trees.export_kohya(request.param[0], tmp_path / "kohya_ss")
    other = trees.export_kohya(request.param[1], tmp_path / "other")
    with_second_revision(root, other)
    done = kohya_ext("install", str(root), "--no-package", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    return root, other


def test_the_setup_script_s_dirty_check_passes(installed: tuple[Path, Path]) -> None:
    root, _ = installed
    assert porcelain(root) == ""
    assert git(root, "submodule", "foreach", "--quiet", "git status --porcelain").stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        ["submodule", "update", "--init", "--recursive"],
        ["submodule", "update", "--force", "--init", "--recursive"],
        ["stash"],
        ["reset", "--hard"],
        ["clean", "-fd"],
        ["submodule", "foreach", "git reset --hard"],
    ],
    ids=" ".join,
)
def test_git_commands(installed: tuple[Path, Path], command: list[str]) -> None:
    root, _ = installed
    git(root, *command)
    status = kohya_ext("status", str(root))
    assert hooked(root) or (status.returncode == 1 and "kohya-ext install" in status.stdout), status.stdout
    again = kohya_ext("install", str(root), "--no-package", "--yes")
    assert again.returncode == 0, again.stdout + again.stderr
    assert hooked(root)


def test_checkout_of_another_release(installed: tuple[Path, Path]) -> None:
    root, other = installed
    expected = modules(other)
    git(root, "checkout", "--quiet", "other")
    if (root / "sd-scripts/.git").exists():
        git(root, "submodule", "update", "--recursive")
    status = kohya_ext("status", str(root))
    assert hooked(root) or (status.returncode == 1 and "kohya-ext install" in status.stdout), status.stdout
    gone = kohya_ext("uninstall", str(root))
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert modules(root) == expected
    assert porcelain(root) == ""


def test_from_the_embedded_to_the_submodule_era(tmp_path: Path) -> None:
    """v22 -> v23 removes the folder that the hook lies in: git refuses, and taking off, moving, putting on works."""
    root = trees.export_kohya("v22.6.2", tmp_path / "kohya_ss")
    other = trees.export_kohya("v23.0.0", tmp_path / "other")
    with_second_revision(root, other)
    assert kohya_ext("install", str(root), "--no-package", "--yes").returncode == 0
    assert kohya_ext("uninstall", str(root)).returncode == 0
    git(root, "checkout", "--quiet", "other")
    git(root, "submodule", "init")
    git(root, "config", "submodule.sd-scripts.url", str(other / ".git/modules/sd-scripts"))
    git(root, "submodule", "update")
    done = kohya_ext("install", str(root), "--no-package", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert hooked(root)


@pytest.mark.parametrize("revision", ["v22.3.1", "v24.1.7", "v26.0.0"])
@pytest.mark.parametrize("leftover", ["flag", "class"])
def test_a_tree_with_the_old_replaced_files_is_refused(revision: str, leftover: str, tmp_path: Path) -> None:
    """Promise 9. The leftovers are lines of ours: what the old files define, not what they are."""
    root = trees.export_kohya(revision, tmp_path / "kohya_ss")
    training = root if (root / "library/train_util.py").is_file() else root / "sd-scripts"
    file = training / "library/train_util.py"
    line = (
        'def add_old(parser):\n    parser.add_argument("--enable_ema")\n'
        if leftover == "flag"
        else "class AdaCoor: ...\n"
    )
    file.write_text(file.read_text(encoding="utf-8") + "\n" + line, encoding="utf-8")
    before = snapshot(root)
    done = kohya_ext("install", str(root), "--no-package", "--yes")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "git -C" in done.stderr
    assert "checkout" in done.stderr
    assert "train_util.py" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(root) == before
