"""Where a checkout defines the functions that we wrap, found by their names without importing anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.sources import SourceFiles, SourceFunction
from kohya_ext.core.errors import UnsupportedError
from kohya_ext.spec.flags import FEATURES
from kohya_ext.spec.hooks import (
    ADVANCED_CLASS,
    HOOKS,
    OPTIMIZER_LABEL,
    OPTIMIZER_LANDMARK,
    SAMPLE,
    TRAINING_PACKAGE,
    Hook,
    hooks_in,
)

Outcome = Literal["found", "older", "n/a", "missing", "ambiguous"]

OWN_SAMPLER_KEY = "own_sampler"
OPTIMIZER_LIST_KEY = "optimizer_list"
EMA_SECTION_KEY = "ema_section"
GUI_KEYS = (OPTIMIZER_LIST_KEY, EMA_SECTION_KEY)


@dataclass(frozen=True)
class HookRow:
    """One row of the table of hooks.

    key: the name in `kohya_ext.spec.hooks`, own_sampler, or one of GUI_KEYS. status: found; older, under a former
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


def scan(checkout: Checkout, sources: SourceFiles | None = None) -> list[HookRow]:
    """Every hook of the checkout, then the families' own samplers, then what we add to in the GUI."""
    sources = sources or SourceFiles()
    places = _places(checkout, sources)
    rows = [_row(hook, places[hook.key], checkout, sources) for hook in HOOKS]
    main = {(row.name, row.file, row.line) for row in rows}
    own = [place for place in places[SAMPLE.key] if (place.name, place.file, place.line) not in main]
    rows += [HookRow(OWN_SAMPLER_KEY, "found", place.name, place.file, place.line) for place in own]
    return rows + _optimizer_lists(checkout, sources) + _advanced_settings(checkout, sources)


def flags_of_fork(checkout: Checkout, sources: SourceFiles) -> list[str]:
    """For each feature of ours that a fork has flags of the same name for: one line that says what is not available."""
    lines = []
    folders = (checkout.training_root / TRAINING_PACKAGE, checkout.training_root)
    for feature, flags in FEATURES.items():
        words = tuple(flag.name for flag in flags)
        files = [path for folder in folders for path in sources.holding(folder, "*.py", words)]
        found = [(path, word) for path in files for word in words if word in sources.names(path).strings]
        if found:
            path, flag = found[0]
            lines.append(
                f"{path.relative_to(checkout.root).as_posix()} has a {flag} of its own (a fork?): "
                f"{feature} of kohya_ext is not available in scripts with that flag; AdaCoor is"
            )
    return lines


def require(rows: Sequence[HookRow], checkout: Checkout) -> None:
    """Raises UnsupportedError, naming the functions, when a hook is missing or defined more than once."""
    bad = [row for row in rows if row.status in ("missing", "ambiguous") and row.key not in GUI_KEYS]
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


@dataclass(frozen=True)
class _Place:
    """Where a hook is defined. file: posix, relative to the checkout. shared: by the library, not by one script."""

    name: str
    file: str
    line: int
    shared: bool


def _places(checkout: Checkout, sources: SourceFiles) -> dict[str, list[_Place]]:
    """Hook -> where the checkout defines it, in the library (at any depth) and, for samplers, in its scripts."""
    names = {name for hook in HOOKS for name in hook.functions}
    found: dict[str, list[_Place]] = {hook.key: [] for hook in HOOKS}
    library = checkout.training_root / TRAINING_PACKAGE
    for path in sources.holding(library, "**/*.py", tuple(f"def {name}" for name in sorted(names))):
        for hook, function in _hooks_of(path, sources):
            found[hook.key].append(_place(checkout, path, function, shared=True))
    # one family keeps its sampler in the script itself; all other hooks count only in the library
    scripts = sources.holding(checkout.training_root, "*.py", tuple(f"\ndef {name}(" for name in SAMPLE.functions))
    for path in scripts:
        for hook, function in _hooks_of(path, sources):
            if hook is SAMPLE:
                found[hook.key].append(_place(checkout, path, function, shared=False))
    return found


def _hooks_of(path: Path, sources: SourceFiles) -> Iterator[tuple[Hook, SourceFunction]]:
    """The hooks that one module defines. A name that it defines twice is there twice, and refused as ambiguous."""
    functions = sources.functions(path)
    for hook, name in hooks_in({function.name: function for function in functions}):
        for function in functions:
            if function.name == name:
                yield hook, function


def _row(hook: Hook, places: list[_Place], checkout: Checkout, sources: SourceFiles) -> HookRow:
    """The hook that counts for the whole release: the one under its newest name."""
    shared = [place for place in places if place.shared]
    for number, name in enumerate(hook.functions):
        called = [place for place in shared if place.name == name]
        if len(called) == 1:
            return HookRow(hook.key, "older" if number else "found", name, called[0].file, called[0].line)
        if called:
            return HookRow(hook.key, "ambiguous", name, ", ".join(f"{place.file}:{place.line}" for place in called))
    if hook.needs_flag and not _has_flag(hook.needs_flag, checkout, sources):
        return HookRow(hook.key, "n/a", hook.functions[0])
    return HookRow(hook.key, "missing", hook.functions[0])


def _place(checkout: Checkout, path: Path, function: SourceFunction, *, shared: bool) -> _Place:
    return _Place(function.name, path.relative_to(checkout.root).as_posix(), function.line, shared)


def _has_flag(flag: str, checkout: Checkout, sources: SourceFiles) -> bool:
    quoted = (f'"{flag}"', f"'{flag}'")
    library = checkout.training_root / TRAINING_PACKAGE
    return bool(sources.holding(library, "*.py", quoted) or sources.holding(checkout.training_root, "*.py", quoted))


def _optimizer_lists(checkout: Checkout, sources: SourceFiles) -> list[HookRow]:
    if checkout.gui_package is None:
        return []
    rows = []
    for path in sources.holding(checkout.root / checkout.gui_package, "*.py", (OPTIMIZER_LANDMARK,)):
        if b"Dropdown" not in sources.data(path):
            continue
        file = path.relative_to(checkout.root).as_posix()
        rows += [
            HookRow(OPTIMIZER_LIST_KEY, "found", OPTIMIZER_LABEL, file, dropdown.line)
            for dropdown in sources.dropdowns(path)
            if dropdown.label == OPTIMIZER_LABEL and OPTIMIZER_LANDMARK in dropdown.choices
        ]
    return rows or [HookRow(OPTIMIZER_LIST_KEY, "missing", OPTIMIZER_LABEL)]


def _advanced_settings(checkout: Checkout, sources: SourceFiles) -> list[HookRow]:
    """The class that the EMA's fields are added to."""
    if checkout.gui_package is None:
        return []
    wanted = f"class {ADVANCED_CLASS}"
    for path in sources.holding(checkout.root / checkout.gui_package, "*.py", (wanted,)):
        for number, line in enumerate(sources.data(path).decode("utf-8", "replace").splitlines(), 1):
            if line.startswith((f"{wanted}:", f"{wanted}(")):
                file = path.relative_to(checkout.root).as_posix()
                return [HookRow(EMA_SECTION_KEY, "found", ADVANCED_CLASS, file, number)]
    return [HookRow(EMA_SECTION_KEY, "missing", ADVANCED_CLASS)]
