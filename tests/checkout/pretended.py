"""An installer that does what pip does, file by file and in its order, without a process: quick, and killed anywhere.

The wheel is the real one; so are RECORD and the script. Each file is a boundary.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

from kohya_ext.checkout.environment import Environment
from kohya_ext.core import about
from kohya_ext.files.faultpoints import crossed
from tests.systems import WINDOWS

SMALL = {
    "kohya_ext/__init__.py": b"",
    "kohya_ext/core/about.py": b'VERSION = "%s"\n' % about.VERSION.encode(),
    "kohya_ext/runtime/__init__.py": b"def activate(name): pass\ndef install(names): pass\n",
    "kohya_ext/runtime/wrapping.py": b"",
}


def run(environment: Environment, wheel: Path, scratch: Path) -> None:
    """In the place of `installer.run`."""
    (scratch / "unpacked").mkdir()
    crossed("pip: temporary folder")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        record = archive.read(f"{info}/RECORD").decode()
        for name in names:
            if not name.endswith("/RECORD"):
                _write(environment.purelib / name, archive.read(name))
    script = environment.scripts / f"{about.NAME}{'.exe' if WINDOWS else ''}"
    text = f"#!{environment.python}\nfrom kohya_ext.cli.main import main\nraise SystemExit(main())\n".encode()
    _write(script, text)
    if not WINDOWS:
        script.chmod(0o755)
    digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
    _write(environment.purelib / info / "INSTALLER", b"pip\n")
    place = os.path.relpath(script, environment.purelib).replace(os.sep, "/")
    rows = [f"{place},sha256={digest},{len(text)}", f"{info}/INSTALLER,,"]
    _write(environment.purelib / info / "RECORD", (record + "\n".join(rows) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        crossed(f"pip: half of {path.name}")
        file.write(data[len(data) // 2 :])
    crossed(f"pip: {path.name}")
