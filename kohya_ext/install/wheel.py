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
from typing import Any

from kohya_ext.core import about
from kohya_ext.core.bundle import BUNDLED, FILES, FOLDERS, PACKAGE_DIR, data_dir, data_file
from kohya_ext.files.regular import toml_loads

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
    inside = f"{about.PACKAGE}/{BUNDLED}"
    for name in FOLDERS:
        files.update((f"{inside}/{name}/{path}", data) for path, data in _tree(data_dir(name)))
    files.update((f"{inside}/{name}", data_file(name).read_bytes()) for name in FILES)
    return dict(sorted(files.items()))


def _tree(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        wanted = not SKIPPED_FOLDERS.intersection(relative.parts) and path.suffix not in SKIPPED_SUFFIXES
        if wanted and not path.name.endswith("~") and path.is_file():
            yield relative.as_posix(), path.read_bytes()


def _metadata() -> dict[str, bytes]:
    project = toml_loads(data_file("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wheel = [
        "Wheel-Version: 1.0",
        f"Generator: {about.NAME} {about.VERSION}",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    scripts = ["[console_scripts]", *(f"{name} = {target}" for name, target in project["scripts"].items())]
    licenses = {f"{dist_info()}/licenses/{name}": data_file(name).read_bytes() for name in project["license-files"]}
    return {
        f"{dist_info()}/METADATA": _lines(_headers(project)) + b"\n" + data_file(project["readme"]).read_bytes(),
        f"{dist_info()}/WHEEL": _lines(wheel),
        f"{dist_info()}/entry_points.txt": _lines(scripts),
        f"{dist_info()}/top_level.txt": _lines([about.PACKAGE]),
        **licenses,
    }


def _headers(project: Mapping[str, Any]) -> list[str]:
    """The core metadata that setuptools makes of the same table (without the readme)."""
    headers = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {about.VERSION}",
        f"Summary: {project['description']}",
        f"Author: {', '.join(author['name'] for author in project['authors'])}",
        f"License-Expression: {project['license']}",
        *(f"Project-URL: {name}, {address}" for name, address in project["urls"].items()),
        f"Keywords: {','.join(project['keywords'])}",
        *(f"Classifier: {classifier}" for classifier in project["classifiers"]),
        f"Requires-Python: {project['requires-python']}",
        "Description-Content-Type: text/markdown",
        *(f"License-File: {name}" for name in project["license-files"]),
        *(f"Requires-Dist: {requirement}" for requirement in project["dependencies"]),
    ]
    for extra, requirements in project["optional-dependencies"].items():
        headers.append(f"Provides-Extra: {extra}")
        headers += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
    return headers


def _record(files: Mapping[str, bytes]) -> bytes:
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        quoted = f'"{name}"' if "," in name else name
        rows.append(f"{quoted},sha256={digest},{len(data)}")
    return _lines([*rows, f"{dist_info()}/RECORD,,"])


def _lines(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8")
