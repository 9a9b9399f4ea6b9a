from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext import presets
from kohya_ext.checkout import gitcommand
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import ConflictError, UnsupportedError
from kohya_ext.core.shell import command
from kohya_ext.install import apply, pending, update
from kohya_ext.install.status import status
from tests.checkout import trees
from tests.files.faults import boundaries, held_elsewhere, killed_at
from tests.systems import HAS_GIT, IS_ROOT

Make = Callable[..., Checkout]


@pytest.fixture(autouse=True)
def local_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """git fetches submodules from folders only when told that it may."""
    for key, value in {"COUNT": "1", "KEY_0": "protocol.file.allow", "VALUE_0": "always"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{key}", value)


@pytest.fixture(autouse=True)
def one_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the installer would put into a GUI: its text names the release it was fitted to."""

    def collect(checkout: Checkout, **_: object) -> dict[str, bytes]:
        folder = "presets/finetune/user_presets"
        return {f"{folder}/ours.json": f'{{"for": "{checkout.release}"}}\n'.encode()} if checkout.gui_root else {}

    monkeypatch.setattr(presets, "collect", collect)


def said() -> tuple[list[str], Callable[[str, str], None]]:
    lines: list[str] = []
    return lines, lambda label, text: lines.append(f"{label}: {text}")


def cloned(origin: Path, folder: Path) -> Checkout:
    """A clone that follows its origin, as a user's is."""
    trees.git(origin.parent, "clone", "-q", "--recurse-submodules", str(origin), str(folder))
    return describe(folder)


def install_ours(checkout: Checkout, patch_set: str = "hook") -> None:
    apply.install(checkout, patch_set=patch_set, presets=presets.collect(checkout))


PRESET = Path("presets/finetune/user_presets/ours.json")


@pytest.mark.parametrize("patch_set", ["hook", "inline"])
def test_a_new_release_is_pulled_and_patched_again(make: Make, tmp_path: Path, patch_set: str) -> None:
    origin = make("embedded", "origin").root
    checkout = cloned(origin, tmp_path / "mine")
    install_ours(checkout, patch_set)
    trees.write(origin, {".release": "v22.4.0", "library/train_util.py": trees.define(*trees.COMMON) + "NEW = 1\n"})
    trees.commit(origin, "v22.4.0")
    lines, report = said()
    done = update.update(checkout, report)
    assert (done.before, done.after, done.failure) == ("v22.3.1", "v22.4.0", None)
    assert b"NEW = 1" in (checkout.root / "library/train_util.py").read_bytes()
    found = status(describe(checkout.root))
    assert found.clean and found.patch_set == patch_set, found.problems
    assert "v22.4.0" in (checkout.root / PRESET).read_text()
    assert [line.split(":")[0] for line in lines] == ["uninstalled", "git"]


def test_from_embedded_to_submodule(make: Make, tmp_path: Path) -> None:
    """What update is for: v22 to v23 deletes the very file that carries our hook."""
    origin = make("embedded", "origin").root
    checkout = cloned(origin, tmp_path / "mine")
    install_ours(checkout)
    scripts = trees.bare(tmp_path / "scripts", "classic")
    trees.git(origin, "rm", "-rq", ".")
    trees.write(origin, trees.gui_files("kohya_gui", "v23.0.0"))
    trees.git(origin, "submodule", "add", "-q", str(scripts), "sd-scripts")
    trees.commit(origin, "v23.0.0")
    done = update.update(checkout, lambda *_: None)
    assert done.failure is None
    now = describe(checkout.root)
    assert (now.layout, now.release) == ("submodule", "v23.0.0")
    found = status(now)
    assert found.clean, found.problems
    patched = {file.path for file in found.files if file.kind == "patched"}
    assert patched == {"sd-scripts/library/__init__.py", "kohya_gui/__init__.py"}
    assert not (checkout.root / "library").exists()
    assert [changes for changes, _ in trees.git_view(checkout.root).values()] == ["", ""]
    apply.uninstall(now)
    assert list(trees.git_view(checkout.root).values()) == [("", []), ("", [])]


def test_a_moved_submodule_is_updated_too(make: Make, tmp_path: Path) -> None:
    origin = make("submodule", "origin").root
    checkout = cloned(origin, tmp_path / "mine")
    install_ours(checkout)
    scripts = origin / "sd-scripts"
    trees.write(scripts, {"library/new.py": "x = 1\n"})
    trees.commit(scripts, "pin2")
    source = Path(trees.git(origin, "config", "-f", ".gitmodules", "submodule.sd-scripts.url").strip())
    trees.git(scripts, "push", "-q", str(source), "HEAD:refs/heads/pin2")
    trees.commit(origin)
    assert update.update(checkout, lambda *_: None).failure is None
    assert (checkout.root / "sd-scripts/library/new.py").is_file()
    assert status(describe(checkout.root)).clean


def test_when_git_refuses_the_hook_goes_on_again(make: Make, tmp_path: Path) -> None:
    origin = make("embedded", "origin").root
    checkout = cloned(origin, tmp_path / "mine")
    install_ours(checkout)
    before = trees.snapshot(checkout.root)
    trees.write(origin, {"train_network.py": "theirs = 1\n"})
    trees.commit(origin)
    (checkout.root / "train_network.py").write_text("mine = 1\n")
    done = update.update(checkout, lambda *_: None)
    assert done.failure is not None and "train_network.py" in done.failure and "git pull --ff-only" in done.failure
    assert status(describe(checkout.root)).clean
    assert (checkout.root / "train_network.py").read_text() == "mine = 1\n"
    after = trees.snapshot(checkout.root)
    assert {name for name in before if before[name] != after.get(name)} == {"train_network.py"}


def test_nothing_to_pull_changes_nothing(make: Make, tmp_path: Path) -> None:
    checkout = cloned(make("submodule", "origin").root, tmp_path / "mine")
    install_ours(checkout)
    before = trees.snapshot(checkout.root)
    assert update.update(checkout, lambda *_: None).failure is None
    assert trees.snapshot(checkout.root) == before


def test_an_edited_preset_stays(make: Make, tmp_path: Path) -> None:
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout)
    (checkout.root / PRESET).write_text("mine\n")
    done = update.update(checkout, lambda *_: None)
    assert (checkout.root / PRESET).read_text() == "mine\n"
    assert done.reinstalled is not None and done.reinstalled.plan.kept == (PRESET.as_posix(),)


def test_a_release_that_cannot_be_patched_is_reported(make: Make, tmp_path: Path) -> None:
    origin = make("embedded", "origin").root
    checkout = cloned(origin, tmp_path / "mine")
    install_ours(checkout)
    trees.write(origin, {"library/train_util.py": "nothing = 1\n"})
    trees.commit(origin)
    done = update.update(checkout, lambda *_: None)
    assert done.reinstalled is None
    assert done.failure is not None and "get_optimizer" in done.failure and "uninstalled from" in done.failure
    assert trees.git(checkout.root, "status", "--porcelain") == ""


def test_an_interruption_puts_the_hook_on_again(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(update, "_pull", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update.update(checkout, lambda *_: None)
    assert status(checkout).clean and status(checkout).installed
    assert (checkout.root / PRESET).is_file()


@pytest.mark.parametrize("patch_set", ["hook", "inline"])
def test_a_killed_update_is_resumed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch_set: str
) -> None:
    """SIGKILL while git works: our files are off, and somebody must know."""
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout, patch_set)
    child = os.fork()
    if child == 0:
        update._pull = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        update.update(checkout, lambda *_: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = status(checkout)
    assert not left.installed and command("doctor", checkout.root) in "".join(left.problems)
    assert trees.git(checkout.root, "status", "--porcelain") == ""
    assert update.resume(checkout) is not None
    after = status(checkout)
    assert after.clean and after.patch_set == patch_set and (checkout.root / PRESET).is_file()
    assert update.resume(checkout) is None


def test_nobody_puts_on_again_while_git_works(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor next to a slow pull: it may not mistake the update for a killed one; it waits for the lock."""
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout)
    seen = []

    def pull(root: Path, _: object) -> None:
        with pytest.raises(BlockingIOError), held_elsewhere(root):
            pass
        seen.append(apply.installed(checkout))

    monkeypatch.setattr(update, "_pull", pull)
    assert update.update(checkout, lambda *_: None).reinstalled is not None
    assert seen == [None]


def test_an_update_that_may_not_uninstall_leaves_no_record(make: Make, tmp_path: Path) -> None:
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout)
    target = checkout.root / "library/__init__.py"
    target.write_bytes(target.read_bytes() + b"mine = 1\n")
    with pytest.raises(ConflictError):
        update.update(checkout, lambda *_: None)
    assert pending.read(checkout.root) is None


def test_what_may_still_be_installed_stays_known(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk when our files are to go on again: the record stays, and doctor has something to go by."""
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout, "inline")
    real = apply.install

    def refused(*_: object, **__: object) -> None:
        raise ConflictError("no space left")

    monkeypatch.setattr(apply, "install", refused)
    done = update.update(checkout, lambda *_: None)
    assert done.reinstalled is None and done.failure is not None and command("doctor", checkout.root) in done.failure
    assert command("doctor", checkout.root) in "".join(status(checkout).problems)
    monkeypatch.setattr(apply, "install", real)
    assert update.resume(checkout) is not None
    assert status(checkout).clean and status(checkout).patch_set == "inline"


def test_after_a_killed_uninstall_the_patch_set_is_known(make: Make, tmp_path: Path) -> None:
    """Wherever it was killed: what comes first is the recovery, and it is said."""
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout, "inline")
    copy = describe(trees.copy(checkout.root, tmp_path / "whole"))
    crossed = boundaries(lambda: apply.uninstall(copy))
    commit = crossed.index("after commit")
    for number in (commit // 2, commit - 1):
        killed = describe(trees.copy(checkout.root, tmp_path / f"killed{number}"))
        assert killed_at(number, lambda killed=killed: apply.uninstall(killed))  # type: ignore[misc]
        lines, report = said()
        assert update.update(killed, report).failure is None
        assert lines[0].startswith("recovered: found an interrupted uninstall"), lines
        assert status(killed).clean and status(killed).patch_set == "inline", crossed[number]


def test_an_update_after_a_killed_one_does_its_work(make: Make, tmp_path: Path) -> None:
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout, "inline")
    apply.uninstall(checkout)
    pending.begin(checkout.root, pending.PendingUpdate("inline", None))
    lines, report = said()
    assert update.update(checkout, report).failure is None
    assert lines[0].startswith("recovered: ") and "interrupted update" in lines[0]
    assert status(checkout).clean and status(checkout).patch_set == "inline"


@pytest.mark.parametrize("there", [True, False], ids=["git is there", "git is not"])
def test_a_copy_without_git_says_how(make: Make, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """An unpacked archive is no use to git, so nobody is told to install it for that."""
    if not there:
        monkeypatch.setattr(gitcommand, "program", lambda: None)
    checkout = make("embedded")
    if HAS_GIT:
        shutil.rmtree(checkout.root / ".git")
    install_ours(checkout)
    before = trees.snapshot(checkout.root)
    with pytest.raises(UnsupportedError, match="is not a git repository"):
        update.update(checkout, lambda *_: None)
    assert trees.snapshot(checkout.root) == before


def test_a_checked_out_tag_says_how(make: Make, tmp_path: Path) -> None:
    checkout = cloned(make("embedded", "origin").root, tmp_path / "mine")
    install_ours(checkout)
    trees.git(checkout.root, "checkout", "-q", "v22.3.1")
    with pytest.raises(ConflictError, match="checkout TAG"):
        update.update(checkout, lambda *_: None)
    assert status(checkout).clean


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_as_root_git_works_as_the_owner(make: Make, public: Path) -> None:
    origin = trees.copy(make("embedded").root, public / "origin")
    checkout = cloned(origin, public / "mine")
    install_ours(checkout)
    trees.write(origin, {".release": "v22.4.0"})
    trees.commit(origin, "v22.4.0")
    for folder in (origin, checkout.root):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 4321, 4321, follow_symlinks=False)
    done = update.update(checkout, lambda *_: None)
    assert done.failure is None
    owners = {path.stat().st_uid for path in checkout.root.rglob("*")}
    assert owners == {4321}
