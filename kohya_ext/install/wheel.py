"""Writes our own wheel: a zip of the running package, its data and its metadata.

No build tool and no network is needed, and it works from the repository as well as from an installed wheel, so that
any copy of kohya_ext can put itself into the Python that runs Kohya. The same content gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from kohya_ext.core import about
from kohya_ext.core.bundle import DATA, PACKAGE_DIR, data_dir

BUNDLED = "bundled"
EPOCH = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644 << 16

SKIPPED_FOLDERS = frozenset({"__pycache__", BUNDLED, ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
SKIPPED_SUFFIXES = frozenset({".pyc", ".pyo", ".swp", ".orig", ".rej", ".tmp"})


def write_wheel(folder: Path) -> Path:
    """Write the wheel of this very copy of kohya_ext into `folder` and return its path."""
    files = {**package_files(), **_metadata()}
    files[f"{dist_info()}/RECORD"] = _record(files)
    target = folder / f"{about.PACKAGE}-{about.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = FILE_MODE
            archive.writestr(entry, data)
    return target


def dist_info() -> str:
    """The name of the folder of our metadata."""
    return f"{about.PACKAGE}-{about.VERSION}.dist-info"


def package_files() -> dict[str, bytes]:
    """What an installation of this copy holds below site-packages: {posix path: content}, without the metadata."""
    files = {f"{about.PACKAGE}/{path}": data for path, data in _tree(PACKAGE_DIR)}
    for name in DATA:
        files.update((f"{about.PACKAGE}/{BUNDLED}/{name}/{path}", data) for path, data in _tree(data_dir(name)))
    return dict(sorted(files.items()))


def _tree(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        wanted = not SKIPPED_FOLDERS.intersection(relative.parts) and path.suffix not in SKIPPED_SUFFIXES
        if wanted and not path.name.endswith("~") and path.is_file():
            yield relative.as_posix(), path.read_bytes()


def _metadata() -> dict[str, bytes]:
    requires = [f"Requires-Dist: {requirement}" for requirement in about.REQUIRES]
    for extra, requirements in about.EXTRAS.items():
        requires.append(f"Provides-Extra: {extra}")
        requires += [f'Requires-Dist: {requirement} ; extra == "{extra}"' for requirement in requirements]
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {about.NAME}",
        f"Version: {about.VERSION}",
        f"Summary: {about.SUMMARY}",
        f"License: {about.LICENSE}",
        f"Requires-Python: {about.REQUIRES_PYTHON}",
        *requires,
    ]
    wheel = [
        "Wheel-Version: 1.0",
        f"Generator: {about.NAME} {about.VERSION}",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    scripts = ["[console_scripts]", *(f"{name} = {target}" for name, target in about.CONSOLE_SCRIPTS.items())]
    return {
        f"{dist_info()}/METADATA": _lines(metadata),
        f"{dist_info()}/WHEEL": _lines(wheel),
        f"{dist_info()}/entry_points.txt": _lines(scripts),
        f"{dist_info()}/top_level.txt": _lines([about.PACKAGE]),
    }


def _record(files: Mapping[str, bytes]) -> bytes:
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        quoted = f'"{name}"' if "," in name else name
        rows.append(f"{quoted},sha256={digest},{len(data)}")
    return _lines([*rows, f"{dist_info()}/RECORD,,"])


def _lines(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8")
