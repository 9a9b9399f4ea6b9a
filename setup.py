"""Adds to the build the data that stands at the top level. What the package is and needs: see `pyproject.toml`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from kohya_ext.core.bundle import BUNDLED, FILES, FOLDERS  # noqa: E402

if int(setuptools.__version__.partition(".")[0]) < 77:  # it would build a package without a license, or without a name
    raise SystemExit(
        f"kohya_ext: setuptools {setuptools.__version__} is too old to build it, 77 is needed: "
        "./install.sh installs it without setuptools, `pip install .` fetches a newer one"
    )


class BuildWithData(build_py):
    """Carries the top-level data inside the package, where a wheel can find it again."""

    def run(self) -> None:
        """Builds the package as setuptools does, then copies the data into it; an editable one finds it in place."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        target = Path(self.build_lib) / "kohya_ext" / BUNDLED
        for name in FOLDERS:
            shutil.copytree(HERE / name, target / name, dirs_exist_ok=True)
        for name in FILES:
            shutil.copy2(HERE / name, target / name)


setuptools.setup(cmdclass={"build_py": BuildWithData})
