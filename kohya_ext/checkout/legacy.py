"""A tree patched with the guide's or the pull request's old files: found before anything is touched, and refused.

Those files bring an EMA and an AdaCoor of their own. With ours on top a run would average twice, or train with one
optimizer under the name of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kohya_ext.checkout import git
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.sources import Names, SourceFiles
from kohya_ext.core import shell
from kohya_ext.core.errors import ConflictError
from kohya_ext.spec.hooks import LEGACY_CLASSES, LEGACY_FLAG, TRAINING_PACKAGE

ATTRIBUTE = LEGACY_FLAG.removeprefix("--")

Mark = tuple[Path, str]


def find(training_root: Path, sources: SourceFiles | None = None) -> list[Mark]:
    """The files of the training code that carry marks of an old patch, and what was found in each."""
    sources = sources or SourceFiles()
    words = (ATTRIBUTE, *(f"class {name}" for name in LEGACY_CLASSES))
    found = []
    for folder in (training_root / TRAINING_PACKAGE, training_root):
        for path in sources.holding(folder, "*.py", words):
            marks = list(_marks(sources.names(path)))
            if marks:
                found.append((path, ", ".join(marks)))
    return found


def refuse(checkout: Checkout, sources: SourceFiles | None = None) -> None:
    """Raises ConflictError, with the command that restores the files, when the checkout carries an old patch."""
    found = find(checkout.training_root, sources)
    if found:
        raise ConflictError(message(checkout, found))


def message(checkout: Checkout, found: Sequence[Mark]) -> str:
    """What was found, and the git command that restores the files."""
    listed = "; ".join(f"{path.relative_to(checkout.root).as_posix()}: {what}" for path, what in found)
    known = {path: entry for path, _ in found if (entry := git.tracked(path)) is not None}
    committed = [path for path in known if git.head_blob(path) == path.read_bytes()]
    changed = [path for path in known if path not in committed]
    unknown = [path for path, _ in found if path not in known]
    fixes = []
    if changed:
        skipped = " --ignore-skip-worktree-bits" if any(known[path].skipped for path in changed) else ""
        fixes.append(f"Restore upstream's files: {_command(f'checkout{skipped} --', changed)}")
    if committed:
        fixes.append(f"They are committed in this branch; take upstream's: {_command('checkout TAG --', committed)}")
    if unknown:
        files = " ".join(shell.quoted(path) for path in unknown)
        fixes.append(f"git does not know these: replace them by those of your release, or remove them: {files}")
    return (
        f"{checkout.root} carries the files of an older EMA or AdaCoor patch ({listed}); nothing was changed.\n"
        + "\n".join(fixes)
        + "\nThen run again."
    )


def _command(verb: str, paths: Sequence[Path]) -> str:
    folder = git.work_tree(paths[0].parent) or paths[0].parent
    files = " ".join(shell.quoted(path.relative_to(folder).as_posix()) for path in paths)
    return f"git -C {shell.quoted(folder)} {verb} {files}"


def _marks(names: Names) -> Iterator[str]:
    yield from (f"class {name}" for name in LEGACY_CLASSES if name in names.classes)
    if LEGACY_FLAG in names.strings or ATTRIBUTE in names.attributes:
        yield LEGACY_FLAG
