"""The state of our package in an environment: compared with its RECORD, and imported by that Python.

Reads only. The bytes tell what is damaged or half removed; the import tells what the bytes cannot, such as a second
copy that comes first on the path.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohya_ext.checkout import identity
from kohya_ext.checkout.environment import Environment, clean_environ
from kohya_ext.core import about, record
from kohya_ext.core.errors import UsageError
from kohya_ext.files.regular import read_text

Condition = Literal["absent", "partial", "damaged", "unimportable", "intact", "linked"]

# pip renames what it is about to remove: "~" takes the place of the first letter, or "~-" that of the first two
PIP_LEFTOVERS = (f"~?{about.PACKAGE[2:]}*", f"-{about.PACKAGE[1:]}*")
IMPORT_SECONDS = 60
FAULTS_SHOWN = 3
# What the lines in Kohya's files lead to, before torch is needed.
IMPORT = """
import json
import kohya_ext, kohya_ext.runtime, kohya_ext.runtime.wrapping
print()
print(json.dumps({"file": kohya_ext.__file__}))
"""


@dataclass(frozen=True)
class Installed:
    """The package in one environment.

    condition: absent; partial, metadata without package or the reverse, files missing, remains of a killed installer;
    damaged, files differ from RECORD; unimportable, whole but that Python cannot import it; whole; linked, a
    developer's link to a source tree. version: what the metadata say. digest: of its files as RECORD has them, the same
    for the same build. faults: what is wrong, for people.
    """

    condition: Condition
    version: str | None = None
    digest: str | None = None
    faults: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a run of Kohya finds the package whole."""
        return self.condition in ("intact", "linked")

    @property
    def said(self) -> str:
        """The faults in one line, the first few of them."""
        more = len(self.faults) - FAULTS_SHOWN
        return ", ".join(self.faults[:FAULTS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def examine(environment: Environment, *, importing: bool = True) -> Installed:
    """Look at the package in `environment`. importing: also import it there, which takes a tenth of a second."""
    found = compare(environment.purelib)
    if not importing or found.condition not in ("intact", "linked"):
        return found
    fault = _import_fault(environment, linked=found.condition == "linked")
    if fault is None:
        return found
    return Installed("absent" if found.condition == "linked" else "unimportable", found.version, found.digest, (fault,))


def compare(purelib: Path) -> Installed:
    """Hold the files of the package in the folder `purelib` against their RECORD."""
    folder = purelib / about.PACKAGE
    infos = sorted(purelib.glob(record.INFO))
    remains = [path.name for pattern in PIP_LEFTOVERS for path in sorted(purelib.glob(pattern))]
    if any(is_link(info) for info in infos):
        return Installed("linked", _version(infos[0]))
    if not folder.exists() and not infos:
        faults = tuple(f"{name} was left by a killed installer" for name in remains)
        return Installed("partial", None, None, faults) if remains else Installed("absent")
    if not infos:
        return Installed("partial", None, None, (f"{about.PACKAGE}/ has no metadata",))
    version = _version(infos[-1])
    if len(infos) > 1:
        return Installed("partial", version, None, (f"metadata of {' and '.join(info.name for info in infos)}",))
    listed = record.of_package(_rows(infos[0]))
    if not listed:
        return Installed("partial", version, None, (f"{infos[0].name}/RECORD is missing or empty",))
    digest = hashlib.sha256(
        "\n".join(sorted(f"{name} {value}" for name, value in listed if value)).encode()
    ).hexdigest()
    missing = [name for name, value in listed if value and not (purelib / name).is_file()]
    there = [(name, value) for name, value in listed if value and name not in missing]
    changed = [name for name, value in there if not record.matches(purelib / name, value)]
    extra = sorted(_sources(purelib) - {name for name, _ in listed})
    faults = (
        *(f"{name} is missing" for name in missing),
        *(f"{name} was left by a killed installer" for name in remains),
        *(f"{name} was changed" for name in changed),
        *(f"{name} does not belong there" for name in extra),
    )
    condition: Condition = "partial" if missing or remains else "damaged" if faults else "intact"
    return Installed(condition, version, digest, faults)


def is_link(info: Path) -> bool:
    """Whether these metadata are of an editable installation."""
    try:
        return bool(json.loads(read_text(info / "direct_url.json"))["dir_info"]["editable"])
    except (UsageError, ValueError, KeyError, TypeError):
        return False


def _version(info: Path) -> str:
    return info.name.removeprefix(f"{about.PACKAGE}-").removesuffix(".dist-info")


def _rows(info: Path) -> list[tuple[str, str]]:
    try:
        return record.rows(read_text(info / record.NAME))
    except UsageError:
        return []


def _sources(purelib: Path) -> set[str]:
    return {path.relative_to(purelib).as_posix() for path in _python_files(purelib / about.PACKAGE)}


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if name.endswith(".py"))


def _import_fault(environment: Environment, *, linked: bool) -> str | None:
    """What that Python says when it imports us, None when it can, and imports the copy that was looked at."""
    # -I would leave the user's own site-packages out, where this kind of environment has us
    isolated = ["-E"] if environment.kind == "user-site" else ["-I"]
    try:
        run = identity.run(
            environment.python,
            [str(environment.python), *isolated, "-B", "-c", IMPORT],
            clean_environ(environment.home),
            home=environment.home,
            seconds=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"importing it takes longer than {IMPORT_SECONDS} s"
    except OSError as error:
        return f"{environment.python} cannot be run: {error.strerror}"
    if run.returncode:
        return f"cannot be imported: {identity.cause(run.stderr) or f'exit code {run.returncode}'}"
    try:
        file = Path(json.loads(run.stdout.strip().splitlines()[-1])["file"])
    except (ValueError, KeyError, TypeError, IndexError):
        return "cannot be imported: its Python gives no answer"
    if not linked and file.resolve().parent != (environment.purelib / about.PACKAGE).resolve():
        return f"{file.parent} is imported first by its Python"
    return None
