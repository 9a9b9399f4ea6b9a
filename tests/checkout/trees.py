"""Small Kohya checkouts, written by us, with what the installer looks at: files, names, signatures, real git.

They are read, never run, so the functions have no bodies worth the name. Four eras: embedded (kohya_ss up to v22.6),
submodule (v23 to v25), split (v26, sd-scripts 0.11 with its small modules), bare (sd-scripts alone, old names).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from tests.systems import HAS_GIT, needs_git

SIGNATURES = {
    "add_optimizer_arguments": "parser",
    "get_optimizer": "args, trainable_params",
    "prepare_accelerator": "args",
    "save_sd_model_on_epoch_end_or_stepwise_common": "args, on_epoch_end, accelerator, epoch, global_step",
    "save_sd_model_on_train_end_common": "args, epoch, global_step",
    "sample_images_common": "pipe_class, accelerator, args, epoch, steps",
    "patch_adafactor_fused": "optimizer",
    "save_sd_model_on_epoch_end": "args, accelerator, epoch",
    "save_sd_model_on_train_end": "args, epoch",
    "sample_images": "accelerator, args, epoch, steps",
}
COMMON = (
    "add_optimizer_arguments",
    "get_optimizer",
    "prepare_accelerator",
    "save_sd_model_on_epoch_end_or_stepwise_common",
    "save_sd_model_on_train_end_common",
    "sample_images_common",
)
OLD = (*COMMON[:3], "save_sd_model_on_epoch_end", "save_sd_model_on_train_end", "sample_images")
OPTIMIZER_TAB = (
    'import gradio as gr\n\nx = gr.Dropdown(\n    label="Optimizer",\n    choices=["AdamW", "AdamW8bit"],\n)\n'
)
EMPTY_GUI_MODULE = '"""nothing here"""\n'
FUSED_FLAG = 'FLAG = "--fused_backward_pass"\n'


def define(*names: str) -> str:
    """A module that defines these functions."""
    return "\n\n".join(f"def {name}({SIGNATURES[name]}):\n    return None" for name in names) + "\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def training_files(era: str) -> dict[str, str]:
    """The training code of an era: classic, split, or old."""
    files = {
        "library/__init__.py": "",
        "train_network.py": "import library\n",
        "fine_tune.py": "import library\n",
        "networks/lora.py": "",
    }
    if era == "old":
        return {**files, "library/train_util.py": define(*OLD)}
    files["sdxl_train.py"] = "import library\n"
    files["library/sdxl_train_util.py"] = "def sample_images(*args, **kwargs):\n    return None\n"
    if era == "classic":
        return {**files, "library/train_util.py": define(*COMMON)}
    return files | {
        "library/args.py": FUSED_FLAG + define("add_optimizer_arguments"),
        "library/optimizer.py": define("get_optimizer"),
        "library/accelerator_setup.py": define("prepare_accelerator"),
        "library/checkpoint_io.py": define(*COMMON[3:5]),
        "library/sampling.py": define("sample_images_common"),
        "library/adafactor_fused.py": define("patch_adafactor_fused"),
        "library/flux_train_utils.py": define("sample_images"),
        "library/train_util.py": "from library.args import add_optimizer_arguments\n",
        "hunyuan_image_train_network.py": "import library\n\n\n" + define("sample_images"),
    }


def gui_files(package: str, release: str) -> dict[str, str]:
    """The GUI next to it; `package` is library (embedded) or kohya_gui."""
    tabs = "" if package == "library" else "kohya_gui/"
    files = {
        "kohya_gui.py": "",
        ".release": release,
        "presets/finetune/adafactor.json": '{"optimizer": "Adafactor"}\n',
        "presets/lora/plain.json": "{}\n",
        f"{tabs}finetune_gui.py": "def open_configuration():\n    return None\n",
        f"{package}/class_basic_training.py": OPTIMIZER_TAB,
    }
    if package == "kohya_gui":
        files["kohya_gui/__init__.py"] = EMPTY_GUI_MODULE
    return files


def git(folder: Path, *arguments: str) -> str:
    """Run git as a developer would; stdout. Where there is no git, the test is skipped."""
    needs_git()
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "protocol.file.allow=always"]
    settings = [
        "-c",
        "safe.directory=*",
        "-c",
        "core.autocrlf=false",
        "-c",
        "advice.detachedHead=false",
        "-c",
        "init.defaultBranch=master",
    ]
    done = subprocess.run(
        ["git", *identity, *settings, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


def commit(folder: Path, tag: str | None = None) -> None:
    """Everything in `folder` as a revision, in a new repository if there is none; where there is no git, nothing."""
    if not HAS_GIT:
        return
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
        git(folder, "config", "core.autocrlf", "false")
        # sample hooks only cost time when the tree is copied
        shutil.rmtree(folder / ".git/hooks", ignore_errors=True)
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "--allow-empty", "-m", tag or "x")
    if tag:
        git(folder, "tag", tag)


def embedded(root: Path) -> Path:
    write(root, training_files("classic") | gui_files("library", "v22.3.1"))
    commit(root, "v22.3.1")
    return root


def bare(root: Path, era: str = "old") -> Path:
    write(root, training_files(era))
    commit(root, "v0.6.6")
    return root


def submodule(root: Path, era: str = "classic", release: str = "v25.2.1") -> Path:
    """A kohya_ss whose sd-scripts is a real submodule; its origin lies next to it."""
    origin = root.parent / f"{root.name} origin"
    write(root, gui_files("kohya_gui", release))
    if not HAS_GIT:
        write(root / "sd-scripts", training_files(era))
        return root
    write(origin, training_files(era))
    commit(origin, "pin1")
    commit(root)
    git(root, "submodule", "add", "-q", str(origin), "sd-scripts")
    shutil.rmtree(root / ".git/modules/sd-scripts/hooks", ignore_errors=True)
    commit(root, release)
    return root


def split(root: Path) -> Path:
    return submodule(root, "split", "v26.0.0")


BUILDERS = {"embedded": embedded, "submodule": submodule, "split": split, "bare": bare}


def copy(root: Path, target: Path) -> Path:
    """An exact copy, to be spoilt."""
    shutil.copytree(root, target, symlinks=True)
    return target


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Every file, link and folder with its bytes and mode; of the git folders what an uninstall must give back."""
    seen: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(root):
        if ".git" in names:
            names.remove(".git")
        for name in [*names, *files]:
            path = Path(folder, name)
            mode = stat.S_IMODE(path.lstat().st_mode)
            key = os.fsdecode(os.path.relpath(path, root))
            if path.is_symlink():
                seen[key] = ("link", str(path.readlink()))
            elif path.is_dir():
                seen[key] = ("folder", mode)
            else:
                data = path.read_bytes()
                if key == ".kohya_ext/manifest.json":  # names the place of the tree, which differs in a copy
                    data = re.sub(rb'\n  "root": .*', b"", data)
                seen[key] = ("file", mode, hashlib.sha256(data).hexdigest())
    for path in [*root.glob(".git/info/*"), *root.glob(".git/modules/*/info/*"), *root.glob(".git/config")]:
        seen[str(path.relative_to(root))] = ("file", hashlib.sha256(path.read_bytes()).hexdigest())
    return seen


def git_view(root: Path) -> dict[str, tuple[str, list[str]]]:
    """What git says about the checkout and its submodule: status, flags."""
    view: dict[str, tuple[str, list[str]]] = {}
    for folder in (root, root / "sd-scripts"):
        if (folder / ".git").exists():
            flags = git(folder, "ls-files", "-v")
            view[folder.name] = (git(folder, "status", "--porcelain"), [x for x in flags.splitlines() if x[0] != "H"])
    return view


def whole(root: Path) -> tuple[dict[str, tuple[object, ...]], dict[str, tuple[str, list[str]]]]:
    """Everything that must be as before."""
    return snapshot(root), git_view(root)
