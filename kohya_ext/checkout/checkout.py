"""A Kohya checkout: what it is, of which era, and where its parts lie.

Three layouts exist. *embedded*: kohya_ss up to v22.6.2, where the GUI and the training code share the top folder and
the `library` package. *submodule*: kohya_ss from v23, GUI in `kohya_gui/`, training code in the git submodule
`sd-scripts/`. *bare*: sd-scripts alone, without a GUI. A second GUI, `kohya_gui_v2/`, may come next to the first, or
without its tabs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kohya_ext.checkout import git
from kohya_ext.checkout.known_locations import GUI_SCRIPT
from kohya_ext.core import shell
from kohya_ext.core.errors import UnsupportedError
from kohya_ext.files.regular import MODULE_LIMIT, NotReadableError, folder_fault, read_regular
from kohya_ext.spec import second_gui
from kohya_ext.spec.hooks import RELEASE_FILE, SUBMODULE

Kind = Literal["kohya_ss", "sd-scripts"]
Layout = Literal["embedded", "submodule", "bare"]

RELEASE_LIMIT = 4096  # bytes of .release, which holds one word
TAB_LANDMARK = "def open_configuration"

# What only they have, and what they are.
STRANGERS = (
    ("src/musubi_tuner", "it is musubi-tuner, which trains video models with code of its own"),
    ("hv_train_network.py", "it is musubi-tuner, which trains video models with code of its own"),
    (
        "scripts/tabs/training/train_network.py",
        "it is kohya-sd-scripts-webui, another GUI, which resets its sd-scripts (the folder kohya_ss) at each start",
    ),
)

# Every release since July 2023 has these; a folder without them cannot train.
TRAINING_LANDMARKS = ("train_network.py", "fine_tune.py", "networks", "library/__init__.py")

# The newest file that tells a generation of sd-scripts from the one before; a shallow clone has no tags to describe.
GENERATIONS = (
    ("library/checkpoint_io.py", "0.11"),
    ("lumina_train.py", "0.10"),
    ("library/adafactor_fused.py", "0.9"),
    ("library/device_utils.py", "0.8"),
    ("sdxl_train.py", "0.7"),
    ("library/train_util.py", "0.6"),
)


class NotACheckoutError(UnsupportedError):
    """Nothing of Kohya's lies there."""


class HalfCheckoutError(UnsupportedError):
    """A Kohya checkout, but with parts missing; the text holds the command that brings them back.

    gui: the checkout where all that is missing is the training code: enough to read the GUI.
    """

    gui: Checkout | None = None


@dataclass(frozen=True)
class Checkout:
    """A complete, supported checkout.

    root: its top folder, resolved. release: the tag, a description such as `v0.9.1-5-gabc1234`, or "unknown".
    training_root: the folder that holds the training scripts and the `library` package that they import.
    gui_root: the folder that holds the modules of the GUI's tabs, None without a GUI that reads JSON presets.
    gui_package: the importable package the GUI's optimizer list lies in, `library` or `kohya_gui`.
    presets_dir: where the GUI looks for presets, None without a GUI.
    second_gui: whether the second GUI is there, `kohya_gui_v2`, which reads and writes TOML.
    """

    root: Path
    kind: Kind
    release: str
    training_root: Path
    layout: Layout
    gui_root: Path | None
    gui_package: Literal["library", "kohya_gui"] | None
    presets_dir: Path | None
    second_gui: bool = False

    @property
    def library(self) -> Path:
        """The `library` package of the training code."""
        return self.training_root / "library"


def stranger(folder: Path) -> str | None:
    """What to say of a repository that people take for Kohya's, None of any other."""
    return next((words for evidence, words in STRANGERS if os.path.exists(folder / evidence)), None)  # noqa: PTH110


def describe(path: Path) -> Checkout:
    """The checkout at `path`, or around it when `path` is the `sd-scripts` folder of a kohya_ss.

    Raises UnsupportedError, with the reason and the fix, when there is no checkout or only half of one.
    """
    root = path.expanduser().resolve()
    try:
        fault = folder_fault(root)
        if fault is not None:
            raise NotACheckoutError(f"{path}: {fault}")
        return _describe(root)
    except PermissionError as error:
        raise UnsupportedError(f"{error.filename}: no permission to read it; run as its owner or as root") from None


def _describe(root: Path) -> Checkout:
    if root.name == SUBMODULE and _has_start_script(root.parent):
        root = root.parent
    if _has_start_script(root):
        return _describe_kohya_ss(root)
    if any((root / name).is_file() for name in TRAINING_LANDMARKS[:2]) and (root / "library").is_dir():
        return _describe_sd_scripts(root)
    known = stranger(root)
    raise NotACheckoutError(
        f"{root} is not a Kohya checkout: {known}"
        if known
        else f"{root} is not a Kohya checkout: it has neither {GUI_SCRIPT} (kohya_ss) "
        "nor train_network.py and library/ (sd-scripts)"
    )


def _has_start_script(root: Path) -> bool:
    return (root / GUI_SCRIPT).is_file() or (root / second_gui.START).is_file()


def _describe_kohya_ss(root: Path) -> Checkout:
    submodule = (root / "kohya_gui").is_dir()
    gui_root = root / "kohya_gui" if submodule else root
    second = (root / second_gui.LANDMARK).is_file()
    first = any(_holds_tab(module) for module in sorted(gui_root.glob("*_gui.py")))
    if not first and not (second and submodule):
        raise HalfCheckoutError(
            f"{root} has a {GUI_SCRIPT} but no module of a tab with `{TAB_LANDMARK}` in {gui_root}: "
            f"it is not kohya_ss v21.8.0 or later, or only part of it. {_restore(root)}"
        )
    if not (root / "presets").is_dir():
        raise HalfCheckoutError(
            f"{root} is an incomplete checkout: it has a {GUI_SCRIPT} but no presets/ folder. {_restore(root)}"
        )
    checkout = Checkout(
        root=root,
        kind="kohya_ss",
        release=_release_of_kohya_ss(root),
        training_root=root / SUBMODULE if submodule else root,
        layout="submodule" if submodule else "embedded",
        gui_root=gui_root if first else None,
        gui_package="kohya_gui" if submodule else "library",
        presets_dir=root / "presets",
        second_gui=second,
    )
    if submodule and not checkout.library.is_dir():
        error = HalfCheckoutError(
            f"{root} is an incomplete checkout: its submodule {SUBMODULE}/ is empty. "
            f"Fetch it: git -C {shell.quoted(root)} submodule update --init --recursive"
        )
        error.gui = checkout
        raise error
    _require_training_code(checkout.training_root)
    return checkout


def _describe_sd_scripts(root: Path) -> Checkout:
    _require_training_code(root)
    return Checkout(
        root=root,
        kind="sd-scripts",
        release=_described_by_git(root) or _generation(root),
        training_root=root,
        layout="bare",
        gui_root=None,
        gui_package=None,
        presets_dir=None,
    )


def _require_training_code(root: Path) -> None:
    missing = [name for name in TRAINING_LANDMARKS if not (root / name).exists()]
    if missing:
        raise HalfCheckoutError(f"{root} is an incomplete checkout: {', '.join(missing)} missing. {_restore(root)}")


def _restore(root: Path) -> str:
    return f"If files were deleted, bring them back: git -C {shell.quoted(root)} checkout -- ."


def _holds_tab(module: Path) -> bool:
    try:
        return TAB_LANDMARK.encode() in read_regular(module, MODULE_LIMIT)
    except NotReadableError:
        return False


def _release_of_kohya_ss(root: Path) -> str:
    """`.release` equals the tag in nearly every release; `pyproject.toml` does not, so it is never asked."""
    try:
        release = read_regular(root / RELEASE_FILE, RELEASE_LIMIT).decode("utf-8", "replace").strip()
    except NotReadableError:
        release = ""
    return release or _described_by_git(root) or "unknown"


def _generation(root: Path) -> str:
    for name, generation in GENERATIONS:
        if (root / name).is_file():
            return f"v{generation}.x (by its files)"
    return "unknown"


def _described_by_git(root: Path) -> str | None:
    """`git describe --tags`, None without git, without a repository of its own, or without tags."""
    if not (root / ".git").exists():
        return None
    said = git.answer(root, "describe", "--tags")
    return said.decode("utf-8", "replace").strip() if said else None
