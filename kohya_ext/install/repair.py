"""Repairs what a killed installer left in an environment: the package is complete again there, or removed."""

from __future__ import annotations

from collections.abc import Iterator

from kohya_ext import presets
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.environment import Environment
from kohya_ext.core import about
from kohya_ext.files.disk import explained
from kohya_ext.files.lock import locked
from kohya_ext.install import apply, package, worksite
from kohya_ext.install.installed import compare
from kohya_ext.install.manifest import Known
from kohya_ext.install.status import PRESETS_ONLY
from kohya_ext.presets.machine import has_xformers


def environments(checkout: Checkout, known: Known) -> list[str]:
    """Mend each of the environments of `checkout`; what was done, one sentence each.

    A package that somebody removed or edited is not touched: that is reported, with the command. Raises ConflictError.
    """
    return [said for environment in known.environments for said in _repaired(checkout, environment)]


def _repaired(checkout: Checkout, environment: Environment) -> Iterator[str]:
    site = package.site_of(environment)
    if not environment.writable or not site.purelib.is_dir():
        return
    with explained(checkout.root), locked(checkout.root):
        if worksite.is_open(site):
            with package.held([environment]):
                yield f"an interrupted change of the package in {environment.place}"
        recorded = apply.installed(checkout)
        wanted = recorded is not None and recorded.patch_set != PRESETS_ONLY
        if recorded is not None and wanted:
            if compare(site.purelib).condition == "partial" and recorded.version == about.VERSION:
                files = presets.collect(checkout, xformers=has_xformers([environment]))
                apply.install(checkout, patch_set=recorded.patch_set, presets=files, environments=[environment])
                yield f"the package in {environment.place} was incomplete; it is intact again"
        elif _forgotten(checkout, environment):
            apply.uninstall(checkout, environments=[environment])
            yield f"the package in {environment.place} had been forgotten by an uninstall; it is gone"


def _forgotten(checkout: Checkout, environment: Environment) -> bool:
    """Whether the package is there for this checkout only, which has nothing of ours any more."""
    register = package.read_register(environment)
    here = str(checkout.root) in register.checkouts and apply.installed(checkout) is None
    return here and register.ours and not package.users(environment, checkout.root)
