"""The installer's verbs. Each takes the lock, recovers what a killed one left, plans, and acts in one transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kohya_ext.checkout import git
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.checkout.environment import Environment
from kohya_ext.core.errors import ConflictError
from kohya_ext.core.shell import command
from kohya_ext.files.disk import explained
from kohya_ext.files.lock import locked
from kohya_ext.files.transaction import Recovery, Transaction
from kohya_ext.install import manifest, patchset
from kohya_ext.install import package as packages
from kohya_ext.install.manifest import Known
from kohya_ext.install.package import PackageResult, Packages
from kohya_ext.install.plan import InstallPlan, plan_install, plan_refit, plan_uninstall
from kohya_ext.install.status import Status
from kohya_ext.install.status import status as _status

__all__ = [
    "InstallPlan",
    "Outcome",
    "Recovery",
    "Status",
    "install",
    "installed",
    "interrupted",
    "recover",
    "refit",
    "status",
    "uninstall",
]

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Outcome:
    """What a verb did. changed: False when all was in place already, or only planned. recovery: what came first.
    packages: what was done in each environment.
    """

    plan: InstallPlan
    changed: bool
    recovery: Recovery | None = None
    packages: tuple[PackageResult, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "verb": self.plan.verb,
            "changed": self.changed,
            "files": [change.path for change in self.plan.changes],
            "kept": list(self.plan.kept),
            "notes": list(self.plan.notes),
            "hooks": [asdict(row) for row in self.plan.hooks],
            "recovered": None if self.recovery is None else asdict(self.recovery),
            "packages": [asdict(result) for result in self.packages],
        }


def install(
    checkout: Checkout,
    *,
    patch_set: str = patchset.DEFAULT,
    presets: Mapping[str, bytes] | None = None,
    package: Mapping[str, Any] | None = None,
    environments: Sequence[Environment] = (),
    dry_run: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> Outcome:
    """Bring `checkout` to `patch_set` and `presets` (path relative to the checkout -> bytes), and our package into
    `environments`, all of it or nothing; twice is as once.

    package: remembered in the manifest instead, where there are no environments; None keeps what it has. wait_seconds:
    for another installer to finish.
    Raises UnsupportedError when a hook is missing, ConflictError when something stands in the way, UsageError for an
    unknown patch set; nothing is changed then.
    """

    def plan(checkout: Checkout) -> InstallPlan:
        remembered = package
        if environments:
            put = [(one, None if packages.state(one) == "editable" else packages.digest()) for one in environments]
            remembered = manifest.package_entry(checkout.root, manifest.read(checkout.root), put)
        return plan_install(checkout, patch_set, presets, remembered)

    if dry_run:
        with explained(checkout.root):
            _require_whole(checkout)
            return Outcome(plan(checkout), changed=False)
    with _at_work(checkout, environments, wait_seconds) as (recovery, checkout):
        # the package first: then no moment exists in which the lines look for it in vain
        planned = plan(checkout)
        effects, results = packages.effects(packages.INSTALL, environments, checkout.root)
        return _run(checkout, replace(planned, steps=(*effects, *planned.steps)), recovery, environments, results)


def refit(
    checkout: Checkout, presets: Mapping[str, bytes], *, dry_run: bool = False, wait_seconds: float = WAIT_SECONDS
) -> Outcome:
    """Fit the presets that are installed in `checkout` to its release; edited ones stay, and so does all else.

    presets: what an install would put there. wait_seconds: for another installer to finish.
    Raises ConflictError when nothing is installed or something stands in the way; nothing is changed then.
    """
    _require_whole(checkout)
    with explained(checkout.root):
        if dry_run:
            return Outcome(plan_refit(checkout, presets), changed=False)
        with locked(checkout.root, wait_seconds):
            _require_whole(checkout)
            return _run(checkout, plan_refit(checkout, presets), None, (), ())


def uninstall(
    checkout: Checkout,
    *,
    presets: Mapping[str, bytes] | None = None,
    environments: Sequence[Environment] = (),
    dry_run: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> Outcome:
    """Take everything of ours out of `checkout`: the same bytes and modes as before the first install; and the package
    out of `environments`, where no other checkout uses it.

    presets: what an install would put there; in a tree whose records are lost, those are known by their bytes.
    Raises ConflictError when a patched file was edited since or its backup is damaged; nothing is changed then.
    """
    if dry_run:
        with explained(checkout.root):
            _require_whole(checkout)
            return Outcome(plan_uninstall(checkout, presets), changed=False)
    with _at_work(checkout, environments, wait_seconds) as (recovery, checkout):
        planned = plan_uninstall(checkout, presets)
        effects, results = packages.effects(packages.REMOVE, environments, checkout.root)
        return _run(checkout, replace(planned, steps=(*planned.steps, *effects)), recovery, environments, results)


def recover(checkout: Checkout, *, wait_seconds: float = WAIT_SECONDS) -> Recovery | None:
    """Bring an interrupted install or uninstall wholly to before or after; None when there is none."""
    with explained(checkout.root), locked(checkout.root, wait_seconds):
        return _transaction(checkout).recover()


def status(checkout: Checkout, environments: Known | None = None) -> Status:
    """Look at `checkout` and change nothing. Raises ConflictError when the manifest is damaged or unreadable.

    environments: in which the package must be; None does not look into any.
    """
    with explained(checkout.root):
        return _status(checkout, environments)


def interrupted(checkout: Checkout) -> bool:
    """True when an install or uninstall was killed in the middle. Reads only."""
    return _transaction(checkout).interrupted()


def installed(checkout: Checkout) -> manifest.Manifest | None:
    """The record of what is installed in `checkout`, None when nothing is. Raises ConflictError when it is damaged."""
    return manifest.read(checkout.root)


@contextlib.contextmanager
def _at_work(
    checkout: Checkout, environments: Sequence[Environment], wait_seconds: float
) -> Iterator[tuple[Recovery | None, Checkout]]:
    """With the locks of the checkout and the environments held together, and what was interrupted recovered."""
    with explained(checkout.root), locked(checkout.root, wait_seconds):
        recovery, checkout = _recovered(checkout)
        with packages.held(environments):
            yield recovery, checkout


def _run(
    checkout: Checkout,
    plan: InstallPlan,
    recovery: Recovery | None,
    environments: Sequence[Environment],
    results: Sequence[PackageResult],
) -> Outcome:
    act = Packages(environments)
    if plan.steps:
        _transaction(checkout, act).run(plan.verb, plan.steps, plan.prune)
    return Outcome(plan, bool(plan.steps), recovery, (*results, *act.results))


def _recovered(checkout: Checkout) -> tuple[Recovery | None, Checkout]:
    recovery = _transaction(checkout).recover()
    return recovery, describe(checkout.root) if recovery else checkout


def _require_whole(checkout: Checkout) -> None:
    if interrupted(checkout):
        raise ConflictError(
            f"an install or uninstall in {checkout.root} was interrupted; first run: {command('doctor', checkout.root)}"
        )


def _transaction(checkout: Checkout, act: Packages | None = None) -> Transaction:
    return Transaction(checkout.root, {**git.OPERATIONS, packages.EFFECT: act or Packages()})
