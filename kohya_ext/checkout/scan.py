"""Where a checkout defines the functions that we wrap, found by their names without importing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.sources import Function, Sources
from kohya_ext.core.errors import UnsupportedError
from kohya_ext.spec.flags import FEATURES
from kohya_ext.spec.hooks import HOOKS, OPTIMIZER_LABEL, OPTIMIZER_LANDMARK, OWN_SAMPLER, TRAINING_PACKAGE, Hook

Outcome = Literal["found", "older", "n/a", "missing", "ambiguous"]

OWN_SAMPLER_KEY = "own_sampler"
OPTIMIZER_LIST_KEY = "optimizer_list"
SAMPLER_PARAMETERS = {"accelerator", "args", "epoch"}


@dataclass(frozen=True)
class Found:
    """One row of the table of hooks.

    key: the hook's name in `kohya_ext.spec.hooks`, or own_sampler, optimizer_list. status: found; older, under a former
    name; n/a, where the release lacks the feature; missing; ambiguous, defined more than once. file: posix, relative to
    the checkout. line: counted from 1.
    """

    key: str
    status: Outcome
    name: str
    file: str | None = None
    line: int | None = None

    @property
    def text(self) -> str:
        """One line for people."""
        where = f"{self.file}:{self.line}" if self.file else "-"
        return f"{self.key:<16} {self.status:<10} {self.name:<45} {where}"


def scan(checkout: Checkout, sources: Sources | None = None) -> list[Found]:
    """Every hook of the checkout, then the families' own samplers, then the GUI's optimizer lists."""
    sources = sources or Sources()
    definitions = _definitions(checkout, sources)
    rows = [_find(hook, definitions, checkout, sources) for hook in HOOKS]
    taken = {(row.file, row.line) for row in rows}
    own = [d for d in definitions.get(OWN_SAMPLER, []) if _is_sampler(d[1]) and (_place(checkout, d)) not in taken]
    rows += [Found(OWN_SAMPLER_KEY, "found", OWN_SAMPLER, *_place(checkout, d)) for d in own]
    return rows + _optimizer_lists(checkout, sources)


def flags_of_fork(checkout: Checkout, sources: Sources) -> list[str]:
    """For each feature of ours that a fork has flags of the same name for: one line that says what is not available."""
    lines = []
    folders = (checkout.training_root / TRAINING_PACKAGE, checkout.training_root)
    for feature, flags in FEATURES.items():
        words = tuple(flags)
        files = [path for folder in folders for path in sources.holding(folder, "*.py", words)]
        found = [(path, flag) for path in files for flag in flags if flag in sources.names(path).strings]
        if found:
            path, flag = found[0]
            lines.append(
                f"{path.relative_to(checkout.root).as_posix()} has a {flag} of its own (a fork?): "
                f"{feature} of kohya_ext is not available in scripts with that flag; AdaCoor is"
            )
    return lines


def require(rows: Sequence[Found], checkout: Checkout) -> None:
    """Raises UnsupportedError, naming the functions, when a hook is missing or defined more than once."""
    bad = [row for row in rows if row.status in ("missing", "ambiguous") and row.key != OPTIMIZER_LIST_KEY]
    if not bad:
        return
    reasons = "; ".join(
        f"{row.name} is {'not defined' if row.status == 'missing' else 'defined more than once'}"
        f" in {checkout.training_root / TRAINING_PACKAGE}{f' ({row.file})' if row.file else ''}"
        for row in bad
    )
    raise UnsupportedError(
        f"{checkout.root} ({checkout.release}) is not a release kohya_ext supports: {reasons}. Nothing was changed. "
        "Use kohya_ss v21.8.0 or later, sd-scripts v0.6.0 or later, or a newer kohya_ext"
    )


Definition = tuple[Path, Function]


def _definitions(checkout: Checkout, sources: Sources) -> dict[str, list[Definition]]:
    names = {name for hook in HOOKS for name in hook.functions} | {OWN_SAMPLER}
    words = tuple(f"def {name}" for name in sorted(names))
    found: dict[str, list[Definition]] = {}
    library = sources.holding(checkout.training_root / TRAINING_PACKAGE, "*.py", words)
    for path in library:
        for function in sources.functions(path):
            if function.name in names:
                found.setdefault(function.name, []).append((path, function))
    # one family keeps its sampler in the script itself; all other hooks count only in the library
    for path in sources.holding(checkout.training_root, "*.py", (f"\ndef {OWN_SAMPLER}(",)):
        samplers = [(path, function) for function in sources.functions(path) if function.name == OWN_SAMPLER]
        found.setdefault(OWN_SAMPLER, []).extend(samplers)
    return found


def _find(hook: Hook, definitions: dict[str, list[Definition]], checkout: Checkout, sources: Sources) -> Found:
    for number, name in enumerate(hook.functions):
        places = definitions.get(name, [])
        if name == OWN_SAMPLER:
            places = [(path, f) for path, f in places if _is_sampler(f) and path.parent.name == TRAINING_PACKAGE]
        if len(places) == 1:
            return Found(hook.key, "older" if number else "found", name, *_place(checkout, places[0]))
        if places:
            files = ", ".join(f"{file}:{line}" for file, line in (_place(checkout, place) for place in places))
            return Found(hook.key, "ambiguous", name, files)
    if hook.needs_flag and not _has_flag(hook.needs_flag, checkout, sources):
        return Found(hook.key, "n/a", hook.functions[0])
    return Found(hook.key, "missing", hook.functions[0])


def _has_flag(flag: str, checkout: Checkout, sources: Sources) -> bool:
    quoted = (f'"{flag}"', f"'{flag}'")
    library = checkout.training_root / TRAINING_PACKAGE
    return bool(sources.holding(library, "*.py", quoted) or sources.holding(checkout.training_root, "*.py", quoted))


def _is_sampler(function: Function) -> bool:
    """False for the thin `sample_images(*args, **kwargs)` that only calls the common one."""
    return function.parameters >= SAMPLER_PARAMETERS


def _place(checkout: Checkout, definition: Definition) -> tuple[str, int]:
    path, function = definition
    return path.relative_to(checkout.root).as_posix(), function.line


def _optimizer_lists(checkout: Checkout, sources: Sources) -> list[Found]:
    if checkout.gui_package is None:
        return []
    rows = []
    for path in sources.holding(checkout.root / checkout.gui_package, "*.py", (OPTIMIZER_LANDMARK,)):
        if b"Dropdown" not in sources.data(path):
            continue
        file = path.relative_to(checkout.root).as_posix()
        rows += [
            Found(OPTIMIZER_LIST_KEY, "found", OPTIMIZER_LABEL, file, dropdown.line)
            for dropdown in sources.dropdowns(path)
            if dropdown.label == OPTIMIZER_LABEL and OPTIMIZER_LANDMARK in dropdown.choices
        ]
    return rows or [Found(OPTIMIZER_LIST_KEY, "missing", OPTIMIZER_LABEL)]
