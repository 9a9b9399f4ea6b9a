"""Writes a miniature Kohya checkout: the real structure, a few lines of torch, a git repository.

One source stands for four eras: a template in `miniature/` marks the lines that only some releases have. A line
`#: since v24`, `#: before v24` or `#: since v22 before v26`, indented as one likes, opens a block; the next such line
closes it and opens another, `#: end` closes it. Lines outside of blocks belong to every era. A first line
`#: file since v24` says which eras have the file at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import UsageError

ERAS = ("v06", "v22", "v24", "v26")
MARK = "#: "
WHOLE_FILE = "#: file "

# Until sd-scripts 0.10 these modules were one file, `train_util.py`; its parts in the order in which it had them.
SPLIT_OFF = (
    "args",
    "optimizer",
    "accelerator_setup",
    "checkpoint_io",
    "sampling",
)
# What v26's scripts call them by; before, all of it was found in `train_util`.
CALLED = (
    "accelerator_setup",
    "args_util",
    "checkpoint_io",
    "optimizer_util",
    "sampling",
)
_PREFIX = re.compile(rf"\b({'|'.join(CALLED)})\.(?=\w)")
_IMPORT = re.compile(r"(import|from) \S")

TEMPLATES = Path(__file__).resolve().parent / "miniature"
SUFFIX = ".in"
SUBMODULE = "sd-scripts"

# The commits of a miniature are the same on every machine.
_IDENTITY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "miniature"), ("EMAIL", "miniature@localhost"), ("DATE", "2026-01-01T00:00:00Z"))
}
_GITIGNORE = "__pycache__\nvenv\n.venv\n*.npz\nlogs\noutputs\nsetup.log\npresets/*/user_presets/*\n"


@dataclass(frozen=True)
class Era:
    """A generation of Kohya.

    release: the tag of the whole checkout. sd_scripts: the tag of its training code. layout: where that code lies.
    """

    name: str
    release: str
    sd_scripts: str
    layout: str


BY_NAME = {
    "v06": Era("v06", "v0.6.6", "v0.6.6", "bare"),
    "v22": Era("v22", "v22.3.1", "v0.7.1", "embedded"),
    "v24": Era("v24", "v24.1.7", "v0.8.7", "submodule"),
    "v26": Era("v26", "v26.0.0", "v0.11.1", "submodule"),
}
NEWEST = ERAS[-1]


def build(era: str, folder: Path) -> Path:
    """Writes the miniature of `era` (one of ERAS) into `folder`, which must be absent or empty, and returns it.

    It becomes a git repository, sd-scripts a submodule of it where the era has one; without git, plain files.
    Raises UsageError where something is in the way.
    """
    kind = BY_NAME[era]
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give the miniature a folder of its own")
    for path, text in files(era).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
    if kind.layout != "bare":
        for tab in ("finetune", "lora"):
            (folder / "presets" / tab / "user_presets").mkdir(parents=True)
    if shutil.which("git") is not None:
        if kind.layout == "submodule":
            _commit(folder / SUBMODULE, kind.sd_scripts)
        _commit(folder, kind.release)
        if kind.layout == "submodule":
            _git(folder, "submodule", "--quiet", "init")
            _git(folder, "submodule", "--quiet", "absorbgitdirs")
    return folder


def training_root(root: Path) -> Path:
    """The folder of the miniature at `root` that holds the training scripts."""
    return root / SUBMODULE if (root / SUBMODULE).is_dir() else root


def files(era: str) -> dict[str, str]:
    """Path in the checkout -> text of every file of the miniature of `era`."""
    kind = BY_NAME[era]
    prefix = SUBMODULE + "/" if kind.layout == "submodule" else ""
    found = {prefix + path: text for path, text in _training_files(era).items()}
    if kind.layout == "bare":
        return {**found, ".gitignore": _GITIGNORE}
    found.update(_gui_files(era, "kohya_gui" if kind.layout == "submodule" else "library"))
    found[".release"] = kind.release
    found[".gitignore"] = _GITIGNORE
    found["presets/finetune/prepare_presets.md"] = "Presets of the Finetune tab.\n"
    found["presets/lora/prepare_presets.md"] = "Presets of the LoRA tab.\n"
    if kind.layout == "submodule":
        found[".gitmodules"] = f'[submodule "{SUBMODULE}"]\n\tpath = {SUBMODULE}\n\turl = ./{SUBMODULE}.git\n'
    return found


def _training_files(era: str) -> dict[str, str]:
    templates = _templates("training", era)
    parts = [f"library/{name}.py" for name in SPLIT_OFF]
    found = {"library/__init__.py": ""}
    if era != NEWEST:
        found["library/train_util.py"] = join([templates.pop(path) for path in parts], era)
    found.update((path, render(template, era)) for path, template in templates.items())
    return found


def _gui_files(era: str, package: str) -> dict[str, str]:
    """The tabs of v22 lie at the top and their classes in `library`; later ones all in `kohya_gui`."""
    found = {}
    for path, template in _templates("gui", era).items():
        at_top = path == "kohya_gui.py" or (era == "v22" and path.endswith("_gui.py"))
        found[path if at_top else f"{package}/{path}"] = render(template, era)
    if package == "kohya_gui":
        found["kohya_gui/__init__.py"] = '"""The tabs of the GUI."""\n'
    return found


def _templates(kind: str, era: str) -> dict[str, str]:
    """Path -> template of the files that `era` has."""
    root = TEMPLATES / kind
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(root.rglob(f"*{SUFFIX}"))}
    return {
        path.relative_to(root).as_posix().removesuffix(SUFFIX): template
        for path, template in sources.items()
        if exists(template, era)
    }


def _commit(root: Path, tag: str) -> None:
    _git(root, "init", "--quiet")
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", f"miniature of {tag}")
    _git(root, "tag", tag)


def _git(root: Path, *words: str) -> None:
    """Runs git as nobody's: neither the user's settings nor his hooks nor an enclosing repository have a say."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environ = {**clean, **_IDENTITY, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    settings = ("-c", "advice.addEmbeddedRepo=false", "-c", "init.defaultBranch=main", "-c", "core.autocrlf=false")
    command = ["git", *settings, *words]  # the git on PATH, in a folder that we have just made
    subprocess.run(command, cwd=root, env=environ, check=True, capture_output=True)


def render(template: str, era: str) -> str:
    """The text of `template` in `era`; before v26, the split modules' prefixes all become `train_util`."""
    text = "".join(_lines_of(template, ERAS.index(era)))
    return text if era == "v26" else _PREFIX.sub("train_util.", text)


def exists(template: str, era: str) -> bool:
    """Whether `era` has the file of `template`."""
    first = template.partition("\n")[0]
    return not first.startswith(WHOLE_FILE) or _applies(first.removeprefix(WHOLE_FILE).split(), ERAS.index(era))


def join(templates: list[str], era: str) -> str:
    """Several modules as one, with their imports at its head."""
    imports: dict[str, None] = {}
    bodies: list[str] = []
    for template in templates:
        lines, body = _split_imports(render(template, era))
        imports.update(dict.fromkeys(lines))
        bodies.append(body.strip("\n"))
    plain = [line for line in imports if line.startswith("import")]
    named = [line for line in imports if line.startswith("from")]
    head = "".join(sorted(plain) + sorted(named))
    return f'"""What the training scripts share."""\n\n{head}\n\n' + "\n\n\n".join(bodies) + "\n"


def _lines_of(template: str, era: int) -> list[str]:
    kept: list[str] = []
    wanted = True
    for line in template.splitlines(keepends=True):
        if line.startswith(WHOLE_FILE):
            continue
        if line.lstrip().startswith(MARK):
            wanted = _applies(line.strip().removeprefix(MARK).split(), era)
        elif wanted:
            kept.append(line)
    return kept


def _applies(words: list[str], era: int) -> bool:
    if words == ["end"]:
        return True
    conditions = dict(zip(words[::2], words[1::2], strict=True))
    since = ERAS.index(conditions.get("since", ERAS[0]))
    before = ERAS.index(conditions["before"]) if "before" in conditions else len(ERAS)
    return since <= era < before


def _split_imports(text: str) -> tuple[list[str], str]:
    """The one-line imports at the top level, and the rest without the module's docstring."""
    _, _, text = text.partition('"""\n') if text.startswith('"""') else ("", "", text)
    head = [line for line in text.splitlines(keepends=True) if _IMPORT.match(line)]
    body = "".join(line for line in text.splitlines(keepends=True) if not _IMPORT.match(line))
    return head, body
