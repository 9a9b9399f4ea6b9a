"""A repository that somebody has prepared: as root, as an ordinary user, as its own user, nothing of it runs."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout import git
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import ConflictError, KohyaExtError
from kohya_ext.install import apply, pending, update
from kohya_ext.install.status import status
from tests.checkout import trees
from tests.files.strangers import NOBODY, as_root, as_stranger, give

Make = Callable[..., Checkout]


class Trap:
    """A program that notes who has run it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        folder.chmod(0o777)
        self.notes = folder / "notes"
        self.notes.touch()
        self.notes.chmod(0o666)
        self.program = folder / "trap"
        self.program.write_text(f"#!/bin/sh\nid -u >> '{self.notes}'\ncat >/dev/null 2>&1 </dev/null\nexit 1\n")
        self.program.chmod(0o755)

    def ran_as(self) -> list[str]:
        return self.notes.read_text().split()


@pytest.fixture
def trap(public: Path) -> Trap:
    return Trap(public / "trap folder")


@pytest.fixture
def make(templates: dict[str, Path], public: Path) -> Make:
    """A fresh checkout of an era where other users can get at it."""
    return lambda era, name="checkout": describe(trees.copy(templates[era], public / name))


def monitor(top: Path, folder: Path, trap: Trap) -> None:
    trees.git(top, "config", "core.fsmonitor", f"'{trap.program}'")


def hooks(top: Path, folder: Path, trap: Trap) -> None:
    (folder / "hooks").mkdir(exist_ok=True)
    for name in ("post-index-change", "reference-transaction", "post-checkout", "post-merge", "query-watchman"):
        shutil.copy(trap.program, folder / "hooks" / name)


def other_hooks(top: Path, folder: Path, trap: Trap) -> None:
    hooks(top, folder, trap)
    (folder / "hooks").rename(folder / "elsewhere")
    trees.git(top, "config", "core.hooksPath", str(folder / "elsewhere"))


def filters(top: Path, folder: Path, trap: Trap) -> None:
    (folder / "info").mkdir(exist_ok=True)
    (folder / "info/attributes").write_text("* filter=x diff=x merge=x\n")
    for key in ("clean", "smudge", "process"):
        trees.git(top, "config", f"filter.x.{key}", f"'{trap.program}'")
    trees.git(top, "config", "diff.x.textconv", f"'{trap.program}'")
    trees.git(top, "config", "diff.x.command", f"'{trap.program}'")


def included(top: Path, folder: Path, trap: Trap) -> None:
    core = f'[core]\n\tfsmonitor = "\'{trap.program}\'"\n\thooksPath = "{folder / "elsewhere"}"\n'
    (folder / "more").write_text(core)
    other_hooks(top, folder, trap)
    trees.git(top, "config", "include.path", str(folder / "more"))


def own_settings_of_the_work_tree(top: Path, folder: Path, trap: Trap) -> None:
    trees.git(top, "config", "extensions.worktreeConfig", "true")
    trees.git(top, "config", "--worktree", "core.fsmonitor", f"'{trap.program}'")


def fetched_when_asked(top: Path, folder: Path, trap: Trap) -> None:
    """A partial clone: what is missing is fetched from its remote when somebody asks for it."""
    for key, value in {
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::'{trap.program}'",
        "remote.origin.uploadpack": f"'{trap.program}'",
        "protocol.ext.allow": "always",
        "core.sshCommand": f"'{trap.program}'",
        "core.repositoryFormatVersion": "1",
    }.items():
        trees.git(top, "config", key, value)
    for name in ("train_network.py", "library/__init__.py", "kohya_gui/__init__.py"):
        with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
            blob = trees.git(top, "rev-parse", f"HEAD:{name}").strip()
            (folder / "objects" / blob[:2] / blob[2:]).unlink()


def programs(top: Path, folder: Path, trap: Trap) -> None:
    for key in (
        "core.pager", "core.editor", "core.askPass", "core.gitProxy", "core.alternateRefsCommand", "core.sshCommand",
        "credential.helper", "gpg.program", "diff.external", "sequence.editor", "uploadpack.packObjectsHook",
        "pager.ls-files", "pager.describe", "pager.config", "trailer.x.command",
    ):  # fmt: skip
        trees.git(top, "config", key, f"!'{trap.program}'" if key == "credential.helper" else f"'{trap.program}'")
    for name in ("describe", "ls-files", "cat-file", "rev-parse", "update-index"):
        trees.git(top, "config", f"alias.{name}", f"!'{trap.program}'")
    trees.git(top, "config", "gpg.ssh.program", str(trap.program))
    trees.git(top, "config", "log.showSignature", "true")


LURES = [
    monitor, hooks, other_hooks, filters, included, own_settings_of_the_work_tree, fetched_when_asked, programs,
]  # fmt: skip


def lure(checkout: Checkout, how: Callable[[Path, Path, Trap], None], trap: Trap) -> None:
    """Prepare the repositories of a checkout."""
    for top in dict.fromkeys((checkout.root, checkout.training_root)):
        found = (top / trees.git(top, "rev-parse", "--git-dir").strip()).resolve()
        how(top, found, trap)
    trap.notes.write_text("")


def everything(root: Path) -> None:
    """All that we do with git in a checkout, pull aside."""
    for verb in (
        lambda: describe(root),
        lambda: apply.install(describe(root)),
        lambda: status(describe(root)),
        lambda: apply.install(describe(root), patch_set="inline"),
        lambda: pending.begin(root, pending.PendingUpdate("hook", None)),
        lambda: pending.end(root),
        lambda: apply.uninstall(describe(root)),
    ):
        with contextlib.suppress(KohyaExtError):
            verb()


@pytest.mark.parametrize("era", ["submodule", "bare"])
@pytest.mark.parametrize("how", LURES)
def test_in_our_own_repository_its_settings_run_nothing(
    make: Make, trap: Trap, era: str, how: Callable[[Path, Path, Trap], None]
) -> None:
    """A tree that came as an archive is ours, and its settings are a stranger's all the same."""
    checkout = make(era)
    lure(checkout, how, trap)
    everything(checkout.root)
    assert trap.ran_as() == []


@as_root
@pytest.mark.parametrize("era", ["submodule", "bare"])
@pytest.mark.parametrize("how", LURES)
def test_as_root_in_a_users_repository(
    make: Make, trap: Trap, era: str, how: Callable[[Path, Path, Trap], None]
) -> None:
    checkout = make(era)
    lure(checkout, how, trap)
    give(checkout.root)
    everything(checkout.root)
    assert "0" not in trap.ran_as()
    assert trap.ran_as() == []
    assert {path.lstat().st_uid for path in checkout.root.rglob("*")} == {NOBODY}


@as_root
def test_as_root_in_a_users_tree_all_is_as_in_our_own(make: Make) -> None:
    """git works there as its owner: flags, ignored files, the release, and away again without a trace."""
    mine, theirs = make("submodule", "mine"), make("submodule", "theirs")
    give(theirs.root)
    before = trees.whole(theirs.root)
    for checkout in (mine, theirs):
        assert apply.install(checkout).changed
    view, other = trees.git_view(mine.root), trees.git_view(theirs.root)
    assert list(other.values()) == list(view.values())
    assert status(theirs).clean
    assert {path.lstat().st_uid for path in theirs.root.rglob("*")} == {NOBODY}
    apply.uninstall(theirs)
    assert trees.whole(theirs.root) == before


@as_root
@pytest.mark.parametrize("part", [".git", "sd-scripts", ".git/modules/sd-scripts", "sd-scripts/.git"])
def test_a_repository_of_two_users_is_refused(make: Make, part: str) -> None:
    checkout = make("submodule")
    give(checkout.root / part)
    before = trees.snapshot(checkout.root)
    for verb in (apply.install, apply.uninstall):
        with pytest.raises(ConflictError, match=r"dubious ownership.*\n?.*chown -R \d+ "):
            verb(checkout)
    assert trees.snapshot(checkout.root) == before
    assert status(checkout).installed is False


@as_root
def test_as_a_user_in_a_strangers_tree(make: Make, trap: Trap) -> None:
    """git's own reason, and what to do; nothing of the stranger's runs."""
    checkout = make("bare")
    for how in (monitor, other_hooks, filters):
        lure(checkout, how, trap)
    give(checkout.root)
    for path in (checkout.root, *checkout.root.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o777 & ~0o111 | (0o111 if path.is_dir() else 0))
    before = trees.snapshot(checkout.root)

    def verbs() -> None:
        os.environ["HOME"] = str(checkout.root)
        for verb in (apply.install, apply.uninstall, lambda c: update.update(c, lambda *_: None)):
            with pytest.raises(ConflictError, match=r"dubious ownership.*safe\.directory"):
                verb(describe(checkout.root))
        assert status(describe(checkout.root)).installed is False

    assert as_stranger(verbs, uid=4321) == 0
    assert trap.ran_as() == []
    assert trees.snapshot(checkout.root) == before


@as_root
@pytest.mark.parametrize("where", ["file", "variables", "star"])
def test_who_names_a_strangers_tree_safe_may_use_it(make: Make, public: Path, where: str) -> None:
    checkout = make("bare")
    give(checkout.root)
    for path in (checkout.root, *checkout.root.rglob("*")):
        path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
    home = public / "home"
    home.mkdir()
    value = "*" if where == "star" else str(checkout.root)
    (home / ".gitconfig").write_text("" if where == "variables" else f'[safe]\n\tdirectory = "{value}"\n')

    def verbs() -> None:
        os.environ["HOME"] = str(home)
        os.environ.pop("GIT_CONFIG_GLOBAL", None)
        if where == "variables":
            os.environ |= {
                "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": value,
            }  # fmt: skip
        assert apply.install(describe(checkout.root)).changed
        assert git.tracked(checkout.root / "library/__init__.py") == git.Tracked(skipped=True)

    assert as_stranger(verbs, uid=4321) == 0


# ---- a .git that leads elsewhere


@pytest.fixture
def others(public: Path) -> Path:
    """Another repository of the same user, which a prepared tree tries to reach."""
    other = public / "others"
    trees.write(other, {"library/__init__.py": "", "a": "b\n"})
    trees.commit(other)
    (other / ".git/info").mkdir(exist_ok=True)
    return other


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leading_file(root: Path, other: Path) -> None:
    shutil.rmtree(root / ".git")
    (root / ".git").write_text(f"gitdir: {other / '.git'}\n")


def leading_link(root: Path, other: Path) -> None:
    shutil.rmtree(root / ".git")
    (root / ".git").symlink_to(other / ".git")


def shared_part(root: Path, other: Path) -> None:
    (root / ".git/commondir").write_text(f"{other / '.git'}\n")


def linked_info(root: Path, other: Path) -> None:
    shutil.rmtree(root / ".git/info", ignore_errors=True)
    (root / ".git/info").symlink_to(other / ".git/info")


def linked_exclude(root: Path, other: Path) -> None:
    (other / ".git/info/exclude").write_text("secret\n")
    (root / ".git/info").mkdir(exist_ok=True)
    (root / ".git/info/exclude").unlink(missing_ok=True)
    (root / ".git/info/exclude").symlink_to(other / ".git/info/exclude")


def work_tree_of_others(root: Path, other: Path) -> None:
    trees.git(other, "worktree", "add", "-q", "--detach", str(other.parent / "second"))
    shutil.rmtree(root / ".git")
    (root / ".git").write_text(f"gitdir: {other / '.git/worktrees/second'}\n")


@pytest.mark.parametrize(
    "how", [leading_file, leading_link, shared_part, linked_info, linked_exclude, work_tree_of_others]
)
def test_nothing_is_written_to_another_repository(make: Make, others: Path, how: Callable[[Path, Path], None]) -> None:
    checkout = make("bare")
    how(checkout.root, others)
    before = (
        trees.snapshot(others),
        sorted((str(p), p.read_bytes()) for p in (others / ".git").rglob("*") if p.is_file()),
    )
    everything(checkout.root)
    with contextlib.suppress(KohyaExtError):
        apply.install(describe(checkout.root))
    after = (
        trees.snapshot(others),
        sorted((str(p), p.read_bytes()) for p in (others / ".git").rglob("*") if p.is_file()),
    )
    assert after == before
    written = [path.read_bytes() for path in (checkout.root / ".kohya_ext").rglob("*.json")]
    assert not any(base64.b64encode(b"secret\n") in data for data in written)


def test_further_work_trees_and_separate_folders_are_their_own(make: Make, public: Path) -> None:
    """What leads elsewhere and knows of its work tree goes on working."""
    checkout = make("bare")
    second = public / "second"
    trees.git(checkout.root, "worktree", "add", "-q", "--detach", str(second))
    apply.install(describe(second))
    assert git.tracked(second / "library/__init__.py") == git.Tracked(skipped=True)
    assert git.tracked(checkout.root / "library/__init__.py") == git.Tracked(skipped=False)
    third = public / "third"
    trees.git(public, "clone", "-q", "--separate-git-dir", str(public / "kept"), str(checkout.root), str(third))
    apply.install(describe(third))
    assert git.tracked(third / "library/__init__.py") == git.Tracked(skipped=True)
    for root in (second, third):
        assert trees.git(root, "status", "--porcelain") == ""
        apply.uninstall(describe(root))
        assert trees.git(root, "status", "--porcelain") == ""


def test_a_git_that_is_none_does_not_lead_upwards(make: Make, public: Path) -> None:
    """git would look further up, and find the repository around it."""
    outer = public / "outer"
    trees.write(outer, {"x": ""})
    trees.commit(outer)
    inner = make("bare", "outer/inner").root
    shutil.rmtree(inner / ".git")
    (inner / ".git").mkdir()
    assert git.answer(inner, "rev-parse", "--git-dir") is None
    assert git.exclude_file(inner) is None


# ---- variables


LEADING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")


@pytest.mark.parametrize("where", [*LEADING, "settings"])
def test_variables_do_not_lead_elsewhere(make: Make, others: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    checkout = make("bare")
    if where == "settings":
        for name, value in {"COUNT": "1", "KEY_0": "core.worktree", "VALUE_0": str(others)}.items():
            monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
        monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.worktree={others}'")
    else:
        monkeypatch.setenv(where, str(others / ".git"))
    assert apply.install(checkout).changed
    assert git.tracked(checkout.root / "library/__init__.py") == git.Tracked(skipped=True)
    assert git.head_blob(checkout.root / "train_network.py") == b"import library\n"


def test_a_git_in_the_current_folder_is_not_run(
    make: Make, trap: Trap, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = make("bare")
    shutil.copy(trap.program, public / "git")
    monkeypatch.chdir(public)
    for path in (".", "", "../" + public.name):
        monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
        assert git.tracked(checkout.root / "library/__init__.py") is not None
    assert trap.ran_as() == []


@as_root
def test_a_users_git_sees_nothing_of_roots_variables(make: Make, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = make("bare")
    give(checkout.root)
    fake = public / "bin/git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nenv\nid -u\nps -o sid= -p $$ 2>/dev/null\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i /root/key")
    said = (git.answer(checkout.root, "x") or b"").decode()
    assert "65534" in said.splitlines()
    assert "secret" not in said and "/root/key" not in said
    assert "HOME=/root" not in said


# ---- what a journal or a manifest of somebody else's says


@pytest.mark.parametrize(
    "arguments",
    [
        {"folder": "../others", "paths": ["a"], "on": True},
        {"folder": "{others}", "paths": ["a"], "on": True},
        {"folder": "link", "paths": ["a"], "on": True},
        {"folder": ".", "paths": ["../others/a"], "on": True},
        {"folder": ".", "paths": ["{others}/a"], "on": True},
        {"folder": ".git", "paths": ["a"], "on": True},
        {"folder": ".", "paths": "train_network.py", "on": True},
        {"folder": ["."], "paths": [], "on": True},
        {"paths": [], "on": True},
        {"folder": "."},
    ],
)
def test_flags_in_the_checkout_only(make: Make, others: Path, arguments: dict[str, object]) -> None:
    checkout = make("bare")
    (checkout.root / "link").symlink_to(others)
    filled = {
        key: value.format(others=others) if isinstance(value, str)
        else [x.format(others=others) for x in value] if isinstance(value, list) else value
        for key, value in arguments.items()
    }  # fmt: skip
    for act in (git.SkipWorktree().apply, git.SkipWorktree().revert):
        with pytest.raises(ConflictError):
            act(checkout.root, filled)
    assert "S" not in {line[0] for line in trees.git(others, "ls-files", "-v").splitlines()}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"before": 1, "after": None}, {"before": "!", "after": "%%"}, {"before": [], "after": {}}],
)
def test_a_damaged_step_is_named(make: Make, arguments: dict[str, object]) -> None:
    checkout = make("bare")
    with pytest.raises(ConflictError, match="journal is damaged"):
        git.Exclude().apply(checkout.root, arguments)


def test_what_is_in_the_repository_keeps_its_mode(make: Make) -> None:
    checkout = make("bare")
    path = checkout.root / ".git/info/exclude"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    path.chmod(0o660)
    apply.install(checkout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
