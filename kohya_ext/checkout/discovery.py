"""Which checkout is meant where none is named: the current folder's, a running GUI's, or one where templates put it.

Refuse rather than guess: where more than one may be meant, none is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kohya_ext.checkout.checkout import Checkout, HalfCheckoutError, NotACheckoutError, describe, stranger
from kohya_ext.checkout.known_locations import CHECKOUTS, NESTED, NESTED_SD_SCRIPTS, expand, machine
from kohya_ext.checkout.processes import processes_of, running_guis
from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.files.transaction import STATE_FOLDER

CURRENT_FOLDER = "the current folder"


@dataclass(frozen=True)
class FoundCheckout:
    """The result of a search. how: where it was found, for people. rejected: what looked like a checkout but is not,
    with the reasons.
    """

    checkout: Checkout
    how: str
    rejected: tuple[str, ...] = ()


class AmbiguousError(UsageError):
    """More than one checkout may be meant. choices: each of them, the likeliest first."""

    def __init__(self, choices: Sequence[FoundCheckout]) -> None:
        self.choices = tuple(choices)
        named = "\n".join(f"  {choice.checkout.root} ({choice.how})" for choice in choices)
        super().__init__(f"more than one checkout may be meant:\n{named}\nNothing was changed. Name the one you mean")


def search(
    argument: str | None,
    environ: Mapping[str, str],
    *,
    proc_root: Path | None = None,
    cwd: Path | None = None,
    prefix: Path | None = None,
    leaving: bool = False,
) -> FoundCheckout:
    """The checkout meant: the argument if there is one; else the one around or in the current folder, that of a running
    GUI, then the places where the templates put it.

    leaving: to uninstall, which is done nowhere else than in the current folder's checkout where that is one; away
    from any, only the checkouts that we are installed in are looked at.
    Raises AmbiguousError where the current folder's checkout and a running GUI's differ, where several GUIs run, or
    where several checkouts may be left; UnsupportedError, with everything that was rejected and why, when there is
    none; HalfCheckoutError when the current folder's checkout or the running GUI's is incomplete, since skipping it
    would surprise.
    """
    if argument is not None:
        return _given(Path(argument))
    prefix = prefix or machine(environ)
    looking = _Search(environ, proc_root or processes_of(prefix), cwd or Path.cwd(), prefix)
    here = looking.here()
    if here is not None and leaving:
        return here
    guis = looking.guis()
    if here is not None:
        served = any(gui.checkout.root == here.checkout.root for gui in guis)
        if guis and not served:
            raise AmbiguousError([here, *guis])
        return here
    if leaving:
        choices = [found for found in (*guis, *looking.places()) if (found.checkout.root / STATE_FOLDER).is_dir()]
        if choices:
            return looking.only(choices)
    if guis:
        return looking.only(guis)
    if looking.half is not None:
        raise looking.half
    found = next(looking.places(), None)
    if found is None:
        raise looking.nothing()
    return replace(found, rejected=tuple(looking.rejected.values()))


class _Search:
    """One search, and what it rejected. half: the first GUI's checkout that was incomplete."""

    def __init__(self, environ: Mapping[str, str], proc_root: Path, cwd: Path, prefix: Path) -> None:
        self.environ, self.proc_root, self.cwd, self.prefix = environ, proc_root, cwd, prefix
        self.rejected: dict[Path, str] = {}
        self.half: HalfCheckoutError | None = None

    def here(self) -> FoundCheckout | None:
        """The checkout around the current folder; or, within another repository, the sd-scripts that it brings."""
        checkout = around(self.cwd)
        if checkout is not None:
            return FoundCheckout(checkout, CURRENT_FOLDER)
        for folder in (self.cwd, *self.cwd.parents):
            known = stranger(folder)
            if known:
                self.rejected[folder] = f"{folder}: {known}"
            elif (folder / ".git").exists():
                inside = nested(folder, NESTED_SD_SCRIPTS)
                if inside:
                    return self.only(
                        [FoundCheckout(checkout, f"{folder}, around the current folder") for checkout in inside]
                    )
        return None

    def guis(self) -> list[FoundCheckout]:
        """The checkouts of the running GUIs, each once."""
        found: dict[Path, FoundCheckout] = {}
        for process in running_guis(self.proc_root):
            how = f"the running GUI (process {process.pid})"
            try:
                checkout = self._describe(process.root)
            except HalfCheckoutError as error:
                self.half = self.half or error
                self.rejected[process.root.resolve()] = str(error)
                continue
            if checkout is not None:
                found.setdefault(checkout.root, FoundCheckout(checkout, how))
        return list(found.values())

    def places(self) -> Iterator[FoundCheckout]:
        """The checkouts at the templates' locations, then those below and next to the current folder; each once."""
        seen: set[Path] = set()
        usual = ((place, f"a known location ({place})") for place in expand(CHECKOUTS, self.environ, self.prefix))
        below = ((self.cwd / name, f"below the current folder ({self.cwd / name})") for name in NESTED)
        beside = self.cwd.parent / "kohya_ss"
        for place, how in (*usual, *below, (beside, f"next to the current folder ({beside})")):
            try:
                checkout = self._describe(place)
            except HalfCheckoutError as error:
                self.rejected[place.resolve()] = str(error)
                continue
            if checkout is not None and checkout.root not in seen:
                seen.add(checkout.root)
                yield FoundCheckout(checkout, how)

    def only(self, choices: Sequence[FoundCheckout]) -> FoundCheckout:
        """The one of `choices`. Raises AmbiguousError where there are several."""
        roots = {choice.checkout.root: choice for choice in reversed(choices)}
        if len(roots) > 1:
            raise AmbiguousError([choice for choice in choices if roots[choice.checkout.root] is choice])
        return replace(choices[0], rejected=tuple(self.rejected.values()))

    def nothing(self) -> UnsupportedError:
        """What to say when nothing was found."""
        looked = "not in the current folder, no running GUI, and not in a location that the templates use"
        reasons = "".join(f"\n  skipped: {reason}" for reason in self.rejected.values())
        return UnsupportedError(
            f"no Kohya checkout found ({looked}). Name its folder: kohya-ext install /path/to/kohya_ss{reasons}"
        )

    def _describe(self, path: Path) -> Checkout | None:
        """Raises HalfCheckoutError; None, with the reason remembered, where it is not a checkout at all."""
        resolved = path.resolve()
        if resolved in self.rejected or not os.path.isdir(resolved):  # noqa: PTH112 - never raises, unlike Path.is_dir
            return None
        try:
            return describe(resolved)
        except HalfCheckoutError:
            raise
        except UnsupportedError as error:
            self.rejected[resolved] = str(error)
            return None


def _given(path: Path) -> FoundCheckout:
    """The checkout at `path`, or the one that the repository there brings."""
    try:
        return FoundCheckout(describe(path), "given")
    except NotACheckoutError as error:
        inside = nested(path, NESTED)
        if len(inside) > 1:
            raise AmbiguousError([FoundCheckout(checkout, f"below {path}") for checkout in inside]) from None
        if not inside or stranger(path):
            raise UnsupportedError(str(error)) from None
        return FoundCheckout(inside[0], f"below {path}")


def around(folder: Path) -> Checkout | None:
    """The innermost checkout that a folder is, or is in."""
    found = (_whole_or_none(one) for one in (folder, *folder.parents))
    return next((checkout for checkout in found if checkout is not None), None)


def _whole_or_none(folder: Path) -> Checkout | None:
    """The checkout at `folder`, None where none is. Raises HalfCheckoutError."""
    try:
        return describe(folder)
    except HalfCheckoutError:
        raise
    except UnsupportedError:
        return None


def nested(folder: Path, names: Sequence[str]) -> list[Checkout]:
    """The checkouts that lie at `names` below `folder`."""
    found = {}
    for name in names:
        with suppress(UnsupportedError):
            checkout = describe(folder.expanduser() / name)
            found[checkout.root] = checkout
    return list(found.values())
