"""The gradio that a GUI runs on, and its one known quarrel with a release.

The finetune tab of v25.0.1 to v26.0.0 starts its warm-up slider with a text. gradio 6, which their open pin lets in,
refuses the text at every event of the tab. A number in the GUI's own `config.toml` fixes it; that file is the user's.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.known_locations import ENVIRONMENTS_IN_CHECKOUT, machine
from kohya_ext.checkout.processes import processes_of, running_guis
from kohya_ext.core.errors import ConflictError, KohyaExtError, UsageError
from kohya_ext.files.atomic import write_atomic
from kohya_ext.files.regular import TEXT_LIMIT, read_regular, read_text, toml_loads
from kohya_ext.install import manifest
from kohya_ext.pysource.sources import FolderSources, parse

TEXT_SLIDER_RELEASES = ((25, 0, 1), (26, 0, 0))
GRADIO_THAT_MINDS = 6
CONFIG = "config.toml"
SECTION, KEY = "basic", "lr_warmup"
CURE = f"{KEY} = 0"
SLIDER_MODULE, SLIDER_ARGUMENT = "kohya_gui/class_basic_training.py", "lr_warmup_value"


def installed_version(checkout: Checkout, python: Path | None = None) -> str | None:
    """The version of gradio that the GUI of a checkout runs on, None where it is not known.

    Read from the names in site-packages: of `python` where given, else of the first environment that has gradio among
    the running GUI's, those the package was installed into, and those in the checkout. Nothing is started.
    """
    for interpreter in [python] if python is not None else _interpreters(checkout):
        prefix = interpreter.parent.parent
        for pattern in ("lib/python3*/site-packages", "Lib/site-packages"):
            for folder in prefix.glob(pattern):
                for record in folder.glob("gradio-*.dist-info"):
                    return record.name.removeprefix("gradio-").removesuffix(".dist-info")
    return None


def _interpreters(checkout: Checkout) -> Iterator[Path]:
    for process in running_guis(processes_of(machine(os.environ))):
        if process.python is not None and process.root.resolve() == checkout.root.resolve():
            yield process.python
    rows = None
    with suppress(KohyaExtError):  # `status` and `doctor` speak of a broken record
        recorded = manifest.read(checkout.root)
        rows = (recorded.package or {}).get("environments") if recorded is not None else None
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("python"), str):
            yield Path(row["python"])
    for name in ENVIRONMENTS_IN_CHECKOUT:
        yield checkout.root / name / "bin" / "python"


def slider_starts_with_number(checkout: Checkout) -> bool:
    """Whether Kohya fixed it in this checkout's source: its main branch calls itself v26.0.0 too."""
    try:
        tree = parse(FolderSources(checkout.root).read(SLIDER_MODULE) or "")
    except SyntaxError:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            given = node.args[len(node.args) - len(node.defaults) :]
            for argument, default in zip(given, node.defaults, strict=True):
                if argument.arg == SLIDER_ARGUMENT and isinstance(default, ast.Constant):
                    return isinstance(default.value, (int, float))
    return False


def warmup_is_number(checkout: Checkout) -> bool:
    """Whether the user's config.toml gives the warm-up as a number."""
    try:
        values = toml_loads(read_text(checkout.root / CONFIG))
    except (UsageError, ValueError):
        return False
    section = values.get(SECTION)
    value = section.get(KEY) if isinstance(section, dict) else None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write_warmup(checkout: Checkout) -> Path:
    """Writes `lr_warmup = 0` under [basic] into config.toml, everything else as it was; gives the file.

    Raises ConflictError when the file cannot be read or written, or says something else about the warm-up.
    """
    path = checkout.root / CONFIG
    try:
        before = read_regular(path, TEXT_LIMIT) if path.exists() else b""
        write_atomic(path, with_warmup(before.decode("utf-8")).encode("utf-8"))
    except (OSError, UsageError, ValueError) as error:
        raise ConflictError(f"{path}: not changed: {error}; write `{CURE}` under [{SECTION}] by hand") from error
    return path


def with_warmup(text: str) -> str:
    """The text of a config.toml with the warm-up as a number. Raises ValueError when that cannot be done safely."""
    before = toml_loads(text.lstrip("\ufeff"))
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    heads = [index for index, line in enumerate(lines) if line.split("#")[0].strip() == f"[{SECTION}]"]
    if heads:
        lines.insert(heads[0] + 1, CURE + newline)
        if not lines[heads[0]].endswith(("\n", "\r")):
            lines[heads[0]] += newline
    else:
        end = "" if not text or text.endswith("\n") else newline
        lines.append(f"{end}[{SECTION}]{newline}{CURE}{newline}")
    after = "".join(lines)
    section = before.get(SECTION, {})
    if not isinstance(section, dict) or KEY in section:
        raise ValueError(f"it has a {KEY} of its own")
    if toml_loads(after.lstrip("\ufeff")) != {**before, SECTION: {**section, KEY: 0}}:
        raise ValueError("it is written in a way that cannot be added to safely")
    return after
