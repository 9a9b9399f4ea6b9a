"""Builds kohya_ext. The metadata lives in `kohya_ext/core/about.py`, which the installer reads too."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ABOUT = runpy.run_path(str(HERE / "kohya_ext" / "core" / "about.py"))


class BuildWithData(build_py):
    """Carries the top-level `patches/` and `presets/` inside the package, where a wheel can find them again."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for name in ("patches", "presets"):
            target = Path(self.build_lib) / "kohya_ext" / "bundled" / name
            shutil.copytree(HERE / name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name=ABOUT["NAME"],
    version=ABOUT["VERSION"],
    description=ABOUT["SUMMARY"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=ABOUT["LICENSE"],
    python_requires=ABOUT["REQUIRES_PYTHON"],
    install_requires=list(ABOUT["REQUIRES"]),
    extras_require={name: list(needs) for name, needs in ABOUT["EXTRAS"].items()},
    packages=find_packages(include=["kohya_ext", "kohya_ext.*"]),
    package_data={"kohya_ext": ["py.typed"], "kohya_ext.demo": ["miniature/**/*"]},
    entry_points={"console_scripts": [f"{name} = {target}" for name, target in ABOUT["CONSOLE_SCRIPTS"].items()]},
    cmdclass={"build_py": BuildWithData},
    zip_safe=False,
)
