from __future__ import annotations

import base64
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from kohya_ext.checkout.environment import clean_environ
from kohya_ext.core import about
from kohya_ext.files.regular import toml_loads
from kohya_ext.install import installer

REPOSITORY = Path(__file__).resolve().parents[2]
IGNORED = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "site", "htmlcov")


def _setuptools_version() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


needs_setuptools = pytest.mark.skipif(_setuptools_version() < 77, reason="needs setuptools 77 or newer")


def metadata_of(archive: zipfile.ZipFile) -> Message:
    return message_from_string(archive.read(f"{installer.dist_info()}/METADATA").decode("utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installer.write_wheel(tmp_path_factory.mktemp("wheel"))


def test_it_holds_the_package_and_its_data(built: Path) -> None:
    names = zipfile.ZipFile(built).namelist()
    assert {
        "kohya_ext/__init__.py",
        "kohya_ext/py.typed",
        "kohya_ext/checkout/probe.py",
        "kohya_ext/runtime/ema_form.js",
        "kohya_ext/bundled/patches/hook.toml",
        "kohya_ext/bundled/patches/inline.toml",
        "kohya_ext/bundled/patches/block.py",
    } <= set(names)
    assert any(name.startswith("kohya_ext/bundled/presets/finetune/") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert len(names) == len(set(names))


def test_every_file_is_recorded_with_its_hash(built: Path) -> None:
    archive = zipfile.ZipFile(built)
    rows = list(csv.reader(io.StringIO(archive.read(f"{installer.dist_info()}/RECORD").decode())))
    assert sorted(row[0] for row in rows) == sorted(archive.namelist())
    for name, digest, size in rows:
        if not name.endswith("/RECORD"):
            data = archive.read(name)
            value = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={value}", len(data))


def test_it_says_what_it_is(built: Path) -> None:
    archive = zipfile.ZipFile(built)
    metadata = metadata_of(archive)
    assert (metadata["Name"], metadata["Version"]) == (about.NAME, about.VERSION)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] and metadata["Summary"] and metadata["Requires-Python"]
    assert f"Repository, {about.REPOSITORY}" in metadata.get_all("Project-URL", [])
    assert "Programming Language :: Python :: 3.10" in metadata.get_all("Classifier", [])
    assert metadata.get_payload() == (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert archive.read(f"{installer.dist_info()}/licenses/LICENSE") == (REPOSITORY / "LICENSE").read_bytes()
    assert f"{about.NAME} = kohya_ext.cli.main:main".encode() in archive.read(
        f"{installer.dist_info()}/entry_points.txt"
    )
    assert b"Tag: py3-none-any" in archive.read(f"{installer.dist_info()}/WHEEL")


@pytest.mark.parametrize("reader", ["tomllib", "tomli", "toml", "pip._vendor.tomli"])
def test_whatever_reads_toml_in_an_environment_reads_our_metadata(reader: str) -> None:
    found = pytest.importorskip(reader).loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert found["project"] == toml_loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_same_content_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert installer.write_wheel(tmp_path).read_bytes() == built.read_bytes()


def test_an_installed_copy_writes_the_same_wheel_with_no_repository_near(built: Path, tmp_path: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "out"
    zipfile.ZipFile(built).extractall(site)
    out.mkdir()
    code = (
        "import pathlib, sys; from kohya_ext.install import installer; installer.write_wheel(pathlib.Path(sys.argv[1]))"
    )
    environ = {**clean_environ(), "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", code, str(out)], check=True, env=environ, cwd=tmp_path)
    assert (out / built.name).read_bytes() == built.read_bytes()


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive that setuptools makes of this repository, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    source = shutil.copytree(REPOSITORY, folder / "source", ignore=shutil.ignore_patterns(*IGNORED))
    _setuptools(source, "build_sdist", folder)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return next((folder / "unpacked").iterdir())


@needs_setuptools
def test_the_source_archive_holds_all_of_the_repository(archived: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    missing = [name for name in listed.stdout.split("\0") if name and not (archived / name).is_file()]
    assert missing == []


@needs_setuptools
def test_setuptools_builds_the_same_wheel_from_the_source_archive(built: Path, archived: Path, tmp_path: Path) -> None:
    _setuptools(archived, "build_wheel", tmp_path)
    theirs, ours = zipfile.ZipFile(next(tmp_path.glob("*.whl"))), zipfile.ZipFile(built)
    generated = ("/WHEEL", "/RECORD", "/METADATA")

    def files(archive: zipfile.ZipFile) -> dict[str, str]:
        names = [name for name in archive.namelist() if not name.endswith(generated)]
        return {name: archive.read(name).decode("utf-8", "surrogateescape").strip() for name in names}

    assert files(theirs) == files(ours)
    fields = [field for field in metadata_of(theirs).items() if field[0] != "Dynamic"]  # about the build, not about us
    assert sorted(fields) == sorted(metadata_of(ours).items())
    assert metadata_of(theirs).get_payload() == metadata_of(ours).get_payload()


def _setuptools(source: Path, hook: str, target: Path) -> None:
    """One step of a build as pip asks for it, in the folder `source`."""
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    command = [sys.executable, "-c", code, str(target)]
    done = subprocess.run(command, cwd=source, env=clean_environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
