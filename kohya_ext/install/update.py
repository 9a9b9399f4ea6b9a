"""Updating a checkout: uninstall our files, let git pull, reinstall them.

Most releases do not need that, since the usual patch survives `git pull`. It exists for those that do: from v22 to v23
the training code moves into a submodule, and git refuses while the old `library/__init__.py` is patched; and for the
patch set inline, which edits files that upstream works on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kohya_ext import presets
from kohya_ext.checkout import git, gitcommand, merging
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.checkout.environment import Environment
from kohya_ext.core import shell
from kohya_ext.core.errors import ConflictError, KohyaExtError, UnsupportedError
from kohya_ext.core.shell import command
from kohya_ext.files.lock import locked
from kohya_ext.install import apply, patchset, pending
from kohya_ext.install import package as packages
from kohya_ext.install.apply import Outcome
from kohya_ext.install.manifest import remembered
from kohya_ext.install.status import PRESETS_ONLY
from kohya_ext.presets.machine import has_xformers

PULL = ("pull", "--ff-only")
SUBMODULES = ("submodule", "update", "--init", "--recursive")


@dataclass(frozen=True)
class UpdateResult:
    """What an update did. before, after: the releases. failure: git's own words when it refused, None otherwise.

    reinstalled: what was installed afterwards; None when the new release cannot be patched, `failure` says why.
    """

    before: str
    after: str
    failure: str | None
    reinstalled: Outcome | None


@dataclass(frozen=True)
class Preview:
    """What an update would do. files: what would be uninstalled. command, news: of git.

    behind: whether there is something to pull; None where the remote cannot be asked, `failure` says why.
    """

    files: tuple[str, ...]
    command: str
    news: str
    behind: bool | None
    failure: str | None


def preview(checkout: Checkout) -> Preview:
    """What `update` would do; asks the remote and changes nothing, not even what git has fetched.

    Raises UnsupportedError and ConflictError where `update` does before it changes something.
    """
    _require_git(checkout)
    merging.refuse(checkout)
    taken = apply.uninstall(checkout, dry_run=True)
    root = checkout.root
    branch = _text(git.answer(root, "symbolic-ref", "HEAD") or b"")
    wanted = "--format=%(upstream:remotename) %(upstream:remoteref)"
    remote, _, name = _text(git.answer(root, "for-each-ref", wanted, branch) or b"").partition(" ")
    asked = gitcommand.fetch(root, "ls-remote", "--exit-code", remote, name)
    files = tuple(change.path for change in taken.plan.changes)
    command = f"git {' '.join(PULL)}"
    shown = f"{remote}/{name.removeprefix('refs/heads/')}"
    if asked.returncode != 0:
        reason = f"git ls-remote {remote} {name} failed:\n{_text(asked.stderr or asked.stdout)}"
        return Preview(files, command, f"{shown} cannot be asked", None, reason)
    there = _text(asked.stdout).split()[0]
    known = git.answer(root, "merge-base", "--is-ancestor", there, "HEAD") is not None
    news = f"nothing new in {shown}" if known else f"{shown} has new commits, up to {there[:12]}"
    return Preview(files, command, news, not known, None)


def update(checkout: Checkout, report: Callable[[str, str], None]) -> UpdateResult:
    """Update `checkout` with git; afterwards it is patched as before, whether git succeeded or not.

    The package in the environments that the checkout remembers is brought to this version with the lines.
    report: is told each step (label, text).
    Raises UnsupportedError where git cannot update, ConflictError when our files cannot be uninstalled or the package
    cannot be replaced; nothing is changed then.
    """
    _require_git(checkout)
    merging.refuse(checkout)
    with locked(checkout.root):  # to the end: nobody else may install in between
        return _update(checkout, report)


def _update(checkout: Checkout, report: Callable[[str, str], None]) -> UpdateResult:
    checkout, wanted = _begin(checkout, report)
    try:
        taken = apply.uninstall(checkout)
    except BaseException:
        if apply.installed(checkout) is not None:  # nothing was uninstalled
            pending.end(checkout.root)
        raise
    report(
        "uninstalled", ", ".join(change.path for change in taken.plan.changes) or "nothing: kohya_ext was not installed"
    )
    for path in taken.plan.kept:
        report("kept", f"{path} (edited since; it stays)")
    failure = None
    updated = checkout
    try:
        failure = _pull(checkout.root, report)
        updated = describe(checkout.root)
        outcome = _reinstall(updated, wanted)
    except KohyaExtError as error:
        reason = f"{failure}\n{error}" if failure else str(error)
        off = "kohya_ext is uninstalled from this checkout now"
        if isinstance(error, UnsupportedError):  # not with this release: nothing to install later
            pending.end(checkout.root)
        else:  # a full disk, say: the record stays
            off += f"; when that is solved, this reinstalls it: {command('doctor', checkout.root)}"
        return UpdateResult(checkout.release, updated.release, f"{reason}\n{off}", None)
    except BaseException:  # Ctrl+C while git works: the old tree gets its hook back
        resume(checkout)
        raise
    pending.end(checkout.root)
    return UpdateResult(checkout.release, updated.release, failure, outcome)


def resume(checkout: Checkout) -> Outcome | None:
    """Put our files on again where an update was killed before it could; None where that is not so."""
    if pending.read(checkout.root) is None and not pending.half_written(checkout.root):
        return None
    with locked(checkout.root):
        left = pending.read(checkout.root)
        if left is None:  # the update was not killed, only slow; or it had not begun
            pending.end(checkout.root)
            return None
        outcome = _reinstall(describe(checkout.root), left)
        pending.end(checkout.root)
    return outcome


def _begin(checkout: Checkout, report: Callable[[str, str], None]) -> tuple[Checkout, pending.PendingUpdate]:
    """Recover what was killed before, then record what is to be reinstalled; the checkout as it is now."""
    recovery = apply.recover(checkout)  # first: a half uninstalled tree has no record to read
    if recovery is not None:
        report("recovered", str(recovery))
        checkout = describe(checkout.root)
    recorded = apply.installed(checkout)
    left = pending.read(checkout.root)
    if left is not None:
        report("recovered", "found an interrupted update: this one completes it")
    known = recorded or left
    patch_set = known.patch_set if known else patchset.DEFAULT
    wanted = pending.PendingUpdate(patch_set, known.package if known else None, known.root if known else None)
    if known is not None and patch_set != PRESETS_ONLY:  # before anything is uninstalled: can the package follow?
        packages.effects(packages.INSTALL, _environments(checkout.root, wanted), checkout.root)
    pending.begin(checkout.root, wanted)
    return checkout, wanted


def _reinstall(checkout: Checkout, wanted: pending.PendingUpdate) -> Outcome:
    known = _environments(checkout.root, wanted)
    environments = [] if wanted.patch_set == PRESETS_ONLY else known
    files = presets.collect(checkout, xformers=has_xformers(known))
    return apply.install(
        checkout, patch_set=wanted.patch_set, presets=files, package=wanted.package, environments=environments
    )


def _environments(root: Path, wanted: pending.PendingUpdate) -> list[Environment]:
    """Those that the package is to go into: while our files are off, the update has the record of them."""
    return remembered(root, wanted.package, wanted.root).environments


def _require_git(checkout: Checkout) -> None:
    if not (checkout.root / ".git").exists():
        raise UnsupportedError(
            f"{checkout.root} is not a git repository (an image's copy?), so it cannot be pulled: "
            "update it the way you installed it, then run kohya-ext install"
        )
    if gitcommand.program() is None:
        raise UnsupportedError("git was not found: install it, or update Kohya without it and run kohya-ext install")
    git.require_access(checkout.root, checkout.training_root)
    if git.answer(checkout.root, "rev-parse", "--abbrev-ref", "@{upstream}") is None:
        raise ConflictError(
            f"{checkout.root} is not on a branch that tracks a remote one (a tag is checked out?), so there is nothing "
            f"to pull; nothing was changed. Choose a release: git -C {shell.quoted(checkout.root)} checkout TAG, "
            "then git submodule update --init --recursive, then kohya-ext install"
        )


def _pull(root: Path, report: Callable[[str, str], None]) -> str | None:
    """git's words when it fails, else None."""
    steps: list[tuple[str, ...]] = [PULL, SUBMODULES] if (root / ".gitmodules").exists() else [PULL]
    done = 0
    while done < len(steps):
        step = steps[done]
        command = f"git {' '.join(step)}"
        run = gitcommand.fetch(root, *step)
        if run.returncode != 0:
            return f"{command} failed:\n{_text(run.stderr or run.stdout)}"
        report("git", f"{command}: {(_text(run.stdout).splitlines() or ['done'])[0]}")
        done += 1
        if step is PULL and len(steps) == 1 and (root / ".gitmodules").exists():
            steps.append(SUBMODULES)  # the release with the submodule came with this pull
    return None


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()
