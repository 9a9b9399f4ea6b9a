"""The plan of an install or uninstall, complete before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kohya_ext.checkout import git, legacy, merging, scan
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.sources import SourceFiles
from kohya_ext.core import about
from kohya_ext.core.errors import ConflictError
from kohya_ext.core.shell import command
from kohya_ext.files.paths import checked
from kohya_ext.install import manifest, patchset
from kohya_ext.install.manifest import PATCHED, PRESET
from kohya_ext.install.planning import Builder, InstallPlan

__all__ = ["InstallPlan", "plan_install", "plan_refit", "plan_uninstall", "unrecorded"]


def plan_install(
    checkout: Checkout,
    patch_set: str = patchset.DEFAULT,
    presets: Mapping[str, bytes] | None = None,
    package: Mapping[str, Any] | None = None,
) -> InstallPlan:
    """What brings `checkout` to the patch set and the presets, from whatever state it is in. Reads only.

    presets: path relative to the checkout -> bytes. package: to remember in the manifest; None keeps what is there.
    Raises UnsupportedError when a hook is missing, ConflictError when something stands in the way.
    """
    git.require_access(checkout.root, checkout.training_root)
    merging.refuse(checkout)
    sources = SourceFiles()
    recorded = manifest.read(checkout.root)
    chosen = patchset.load(patch_set)
    hooks = scan.scan(checkout, sources) if chosen.edits else []
    if chosen.edits:
        legacy.refuse(checkout, sources)
        scan.require(hooks, checkout)
    targets = {relative(checkout.root, target.path): target for target in chosen.targets(checkout, hooks)}
    strays = [] if recorded else unrecorded(checkout)
    builder = _builder(checkout, recorded, [*targets, *strays])
    for path, target in targets.items():
        builder.patch(path, target, chosen)
    for path in strays:
        if path not in targets:
            builder.restore_unrecorded(path)
    for entry in builder.entries(PATCHED):
        if entry.path not in targets:
            builder.restore(entry)
    for path, data in sorted((presets or {}).items()):
        builder.add_preset(relative(checkout.root, checkout.root / checked(path)), data)
    placed = {relative(checkout.root, checkout.root / path) for path in presets or {}}
    for entry in builder.entries(PRESET):
        if entry.path not in placed:
            builder.remove_preset(entry, keep_record=True)
    if package is None and recorded is not None:
        package = recorded.package
    if recorded is not None and newer(recorded.version):
        said = f"kohya_ext {recorded.version} was installed here; {about.VERSION}, an older version, replaces it"
        builder.notes.append(said)
    if chosen.edits:
        builder.notes += scan.flags_of_fork(checkout, sources)
    return replace(builder.install(checkout.release, patch_set, package), hooks=tuple(hooks))


def plan_uninstall(checkout: Checkout, presets: Mapping[str, bytes] | None = None) -> InstallPlan:
    """What takes everything of ours out of `checkout`. Reads only.

    presets: what an install would put there; without records, files of these bytes are ours.
    Raises ConflictError when a file of ours was edited since, or its backup is damaged.
    """
    git.require_access(checkout.root, checkout.training_root)
    merging.refuse(checkout)
    merging.refuse(checkout)
    recorded = manifest.read(checkout.root)
    if recorded is None:
        return _uninstall_unrecorded(checkout, presets or {})
    builder = _builder(checkout, recorded)
    for entry in builder.entries(PATCHED):
        builder.restore(entry)
    for entry in builder.entries(PRESET):
        builder.remove_preset(entry, keep_record=False)
    return builder.uninstall()


def _uninstall_unrecorded(checkout: Checkout, presets: Mapping[str, bytes]) -> InstallPlan:
    """The records were lost, when the tree was copied perhaps: our lines are known by their marks, and the presets by
    their bytes.
    """
    strays = unrecorded(checkout)
    builder = _builder(checkout, None, strays)
    for path in strays:
        builder.restore_unrecorded(path)
    if strays or builder.excluded():
        for path, data in sorted(presets.items()):
            builder.remove_unrecorded_preset(relative(checkout.root, checkout.root / checked(path)), data)
    plan = builder.uninstall()
    if not plan.steps:
        return replace(plan, notes=("kohya_ext is not installed in this checkout",))
    return plan


def plan_refit(checkout: Checkout, presets: Mapping[str, bytes]) -> InstallPlan:
    """What fits the presets that are installed to the release that is there now. Reads only.

    presets: what an install would put there. A preset that was removed or edited stays as it is, one that the release
    cannot take goes. Raises ConflictError where nothing is installed, or where another version of ours did it.
    """
    recorded = manifest.read(checkout.root)
    if recorded is None:
        raise ConflictError(f"kohya_ext is not installed in {checkout.root}")
    if recorded.version != about.VERSION:
        raise ConflictError(
            f"kohya_ext {recorded.version} was installed in {checkout.root}, this is {about.VERSION}. "
            f"Run: {command('install', checkout.root)}"
        )
    builder = _builder(checkout, recorded)
    for entry in builder.entries(PRESET):
        data = presets.get(entry.path)
        if not (checkout.root / entry.path).exists():
            builder.next_entries.append(entry)
        elif data is None:
            builder.remove_preset(entry, keep_record=True)
        else:
            builder.add_preset(relative(checkout.root, checkout.root / checked(entry.path)), data)
    return builder.refit(recorded, checkout.release)


def newer(version: str) -> bool:
    """Whether `version` is a later one of ours than this copy's."""
    return _numbers(version) > _numbers(about.VERSION)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def patch_set_there(checkout: Checkout) -> str | None:
    """The patch set whose lines are in a checkout without records, None where there are none."""
    strays = unrecorded(checkout)
    if not strays:
        return None
    return patchset.DEFAULT if all(path.endswith("/__init__.py") for path in strays) else patchset.INLINE


def _builder(checkout: Checkout, recorded: manifest.Manifest | None, targets: Iterable[str] = ()) -> Builder:
    patched = [entry.path for entry in recorded.files if entry.kind == PATCHED] if recorded else []
    paths = dict.fromkeys([*targets, *patched])
    return Builder(checkout.root, recorded, git.head_blobs(checkout.root / path for path in paths))


def unrecorded(checkout: Checkout) -> list[str]:
    """Files with a block of ours in a checkout without a manifest (deleted, or lost when the tree was copied)."""
    folders = [checkout.library, *([checkout.root / checkout.gui_package] if checkout.gui_package else [])]
    found = SourceFiles()
    marker = (patchset.MARKER.decode(),)
    paths = dict.fromkeys(path for folder in folders for path in found.holding(folder, "*.py", marker))
    return [path.relative_to(checkout.root).as_posix() for path in paths]


def relative(root: Path, path: Path) -> str:
    """`path` relative to the checkout, links resolved. Raises ConflictError when a link leads out of the checkout."""
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise ConflictError(
            f"{path} is really {real}, outside of the checkout {root}: a link points there. Nothing was changed; "
            "install into the checkout that the link points to, or replace the link with a copy"
        )
    return checked(real.relative_to(root.resolve()).as_posix())
