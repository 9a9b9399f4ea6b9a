"""The installer's verbs. Each takes the lock, recovers what a killed one left, plans, and acts in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kohya_ext.errors import ConflictError
from kohya_ext.files.lock import locked
from kohya_ext.files.transaction import Recovery, Transaction, explained
from kohya_ext.install import git, manifest, patchset
from kohya_ext.install.checkout import Checkout, describe
from kohya_ext.install.plan import Plan, plan_install, plan_uninstall
from kohya_ext.install.status import Status
from kohya_ext.install.status import status as _status

__all__ = [
    "Outcome",
    "Plan",
    "Recovery",
    "Status",
    "install",
    "installed",
    "interrupted",
    "recover",
    "status",
    "uninstall",
]

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Outcome:
    """What a verb did. changed: False when all was in place already, or only planned. recovery: what came first."""

    plan: Plan
    changed: bool
    recovery: Recovery | None = None

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
        }


def install(
    checkout: Checkout,
    *,
    patch_set: str = patchset.DEFAULT,
    presets: Mapping[str, bytes] | None = None,
    package: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> Outcome:
    """Bring `checkout` to `patch_set` and `presets` (path relative to the checkout -> bytes); twice is as once.

    package: remembered in the manifest, None keeps what it has. wait_seconds: for another installer to finish.
    Raises UnsupportedError when a hook is missing, ConflictError when something stands in the way, UsageError for an
    unknown patch set; nothing is changed then.
    """
    if dry_run:
        with explained(checkout.root):
            _require_whole(checkout)
            return Outcome(plan_install(checkout, patch_set, presets, package), changed=False)
    with explained(checkout.root), locked(checkout.root, wait_seconds):
        recovery, checkout = _recovered(checkout)
        return _run(checkout, plan_install(checkout, patch_set, presets, package), recovery)


def uninstall(checkout: Checkout, *, dry_run: bool = False, wait_seconds: float = WAIT_SECONDS) -> Outcome:
    """Take everything of ours out of `checkout`: the same bytes and modes as before the first install.

    Raises ConflictError when a patched file was edited since or its backup is damaged; nothing is changed then.
    """
    if dry_run:
        with explained(checkout.root):
            _require_whole(checkout)
            return Outcome(plan_uninstall(checkout), changed=False)
    with explained(checkout.root), locked(checkout.root, wait_seconds):
        recovery, checkout = _recovered(checkout)
        return _run(checkout, plan_uninstall(checkout), recovery)


def recover(checkout: Checkout, *, wait_seconds: float = WAIT_SECONDS) -> Recovery | None:
    """Bring an interrupted install or uninstall wholly to before or after; None when there is none."""
    with explained(checkout.root), locked(checkout.root, wait_seconds):
        return _transaction(checkout).recover()


def status(checkout: Checkout) -> Status:
    """Look at `checkout` and change nothing. Raises ConflictError when the manifest is damaged or unreadable."""
    with explained(checkout.root):
        return _status(checkout)


def interrupted(checkout: Checkout) -> bool:
    """True when an install or uninstall was killed in the middle. Reads only."""
    return _transaction(checkout).interrupted()


def installed(checkout: Checkout) -> manifest.Manifest | None:
    """The record of what is installed in `checkout`, None when nothing is. Raises ConflictError when it is damaged."""
    return manifest.read(checkout.root)


def _run(checkout: Checkout, plan: Plan, recovery: Recovery | None) -> Outcome:
    if plan.steps:
        _transaction(checkout).run(plan.verb, plan.steps, plan.prune)
    return Outcome(plan, bool(plan.steps), recovery)


def _recovered(checkout: Checkout) -> tuple[Recovery | None, Checkout]:
    recovery = _transaction(checkout).recover()
    return recovery, describe(checkout.root) if recovery else checkout


def _require_whole(checkout: Checkout) -> None:
    if interrupted(checkout):
        raise ConflictError(
            f"an install or uninstall in {checkout.root} was interrupted; run `kohya-ext doctor` to recover it first"
        )


def _transaction(checkout: Checkout) -> Transaction:
    return Transaction(checkout.root, git.OPERATIONS)
