from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest

from kohya_ext.checkout.environment import clean_environ
from kohya_ext.core import about
from kohya_ext.install import wheel

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.write_wheel(tmp_path_factory.mktemp("wheel"))


def test_it_holds_the_package_and_its_data(built: Path) -> None:
    names = zipfile.ZipFile(built).namelist()
    assert {
        "kohya_ext/__init__.py",
        "kohya_ext/py.typed",
        "kohya_ext/checkout/probe.py",
        "kohya_ext/bundled/patches/hook.toml",
        "kohya_ext/bundled/patches/inline.toml",
    } <= set(names)
    assert any(name.startswith("kohya_ext/bundled/presets/finetune/") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert len(names) == len(set(names))


def test_every_file_is_recorded_with_its_hash(built: Path) -> None:
    archive = zipfile.ZipFile(built)
    rows = list(csv.reader(io.StringIO(archive.read(f"{wheel.dist_info()}/RECORD").decode())))
    assert sorted(row[0] for row in rows) == sorted(archive.namelist())
    for name, digest, size in rows:
        if not name.endswith("/RECORD"):
            data = archive.read(name)
            value = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={value}", len(data))


def test_the_metadata_is_that_of_setup_py(built: Path) -> None:
    archive = zipfile.ZipFile(built)
    metadata = message_from_bytes(archive.read(f"{wheel.dist_info()}/METADATA"))
    assert (metadata["Name"], metadata["Version"]) == (about.NAME, about.VERSION)
    assert metadata["Requires-Python"] == about.REQUIRES_PYTHON
    assert metadata.get_all("Requires-Dist", [])[: len(about.REQUIRES)] == list(about.REQUIRES)
    assert b"kohya-ext = kohya_ext.cli.main:main" in archive.read(f"{wheel.dist_info()}/entry_points.txt")
    assert b"Tag: py3-none-any" in archive.read(f"{wheel.dist_info()}/WHEEL")


def test_the_same_content_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert wheel.write_wheel(tmp_path).read_bytes() == built.read_bytes()


def test_an_installed_copy_writes_the_same_wheel_with_no_repository_near(built: Path, tmp_path: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "out"
    zipfile.ZipFile(built).extractall(site)
    out.mkdir()
    code = (
        "import pathlib, sys; from kohya_ext.install.wheel import write_wheel; write_wheel(pathlib.Path(sys.argv[1]))"
    )
    environ = {**clean_environ(), "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", code, str(out)], check=True, env=environ, cwd=tmp_path)
    assert (out / built.name).read_bytes() == built.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None or find_spec("pip") is None, reason="needs pip and setuptools")
def test_setup_py_builds_the_same_files(built: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    theirs = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    ours = zipfile.ZipFile(built)

    def files(archive: zipfile.ZipFile) -> dict[str, bytes]:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}

    assert files(theirs) == files(ours)
