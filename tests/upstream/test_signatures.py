"""The miniatures are what we say they are: signatures and call order equal the real trees', release by release."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from kohya_ext.spec.hooks import HOOKS
from tests.miniatures.build import BY_NAME, ERAS, files

pytestmark = [pytest.mark.upstream, pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")]

HOOKED = {name for hook in HOOKS for name in hook.functions}
# What the scripts call around them, and what our wrappers lean on.
NEIGHBOURS = {
    "add_training_arguments",
    "read_config_from_file",
    "resume_from_local_or_hf_if_specified",
    "get_scheduler_fix",
    "prepare_dtype",
    "get_epoch_ckpt_name",
    "get_step_ckpt_name",
    "get_last_ckpt_name",
    "get_remove_epoch_no",
    "get_remove_step_no",
    "save_and_remove_state_on_epoch_end",
    "save_and_remove_state_stepwise",
    "save_state_on_train_end",
    "adafactor_step_param",
    "prepare_deepspeed_plugin",
}
NETWORK_METHODS = ("save_weights", "load_weights", "prepare_optimizer_params")
TRAINER_METHODS = ("_save_model", "_remove_model", "sample_images", "train")

# Calls whose order in a training script we rely on; of the methods with common names, only on these objects.
ORDERED = HOOKED | {
    "read_config_from_file",
    "resume_from_local_or_hf_if_specified",
    "get_scheduler_fix",
    "save_model",
    "remove_model",
    "_save_model",
    "_remove_model",
    "save_weights",
    "save_and_remove_state_on_epoch_end",
    "save_and_remove_state_stepwise",
    "save_state_on_train_end",
}
PREPARE = "accelerator.prepare"
ORDERED_METHODS = {
    PREPARE,
    "accelerator.accumulate",
    "accelerator.backward",
    "accelerator.end_training",
    "optimizer.step",
    "optimizer.zero_grad",
    "lr_scheduler.step",
}
SCRIPTS = ("sdxl_train.py", "fine_tune.py", "train_network.py", "sdxl_train_network.py")

Reader = Callable[[str], str]


def git(variable: str, *words: str) -> str:
    command = ["git", f"--git-dir={os.environ[variable]}", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GIT_NO_LAZY_FETCH": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def source(era: str) -> tuple[str, str]:
    """The git directory's variable and the revision that hold the real training code of `era`."""
    kind = BY_NAME[era]
    if kind.layout == "bare":
        return "SD_SCRIPTS_GIT", kind.sd_scripts
    if kind.layout == "embedded":
        return "KOHYA_SS_GIT", kind.release
    pin = git("KOHYA_SS_GIT", "ls-tree", kind.release, "sd-scripts").split()[2]
    known = subprocess.run(["git", f"--git-dir={os.environ['SD_SCRIPTS_GIT']}", "cat-file", "-e", f"{pin}^{{tree}}"])
    return ("SD_SCRIPTS_GIT" if known.returncode == 0 else "SD_SCRIPTS_FORK_GIT"), pin


@cache
def real(era: str, path: str) -> str:
    variable, revision = source(era)
    return git(variable, "show", f"{revision}:{path}")


@cache
def real_modules(era: str) -> tuple[str, ...]:
    variable, revision = source(era)
    names = git(variable, "ls-tree", "--name-only", revision, "library/").splitlines()
    return tuple(name for name in names if name.endswith(".py"))


@cache
def miniature(era: str) -> dict[str, str]:
    """Path in the training tree -> text."""
    prefix = "sd-scripts/" if BY_NAME[era].layout == "submodule" else ""
    return {path.removeprefix(prefix): text for path, text in files(era).items() if path.startswith(prefix)}


def tree(text: str) -> ast.Module:
    return ast.parse(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))


def signature(function: ast.FunctionDef) -> str:
    """Names, kinds and defaults of the parameters; without annotations, which change nothing."""
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(function.args)


def signatures(modules: dict[str, str]) -> dict[str, set[tuple[str, str]]]:
    """Function -> where it is defined at the top level, and how; every definition counts."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path, text in modules.items():
        for node in tree(text).body:
            if isinstance(node, ast.FunctionDef) and node.name in HOOKED | NEIGHBOURS:
                found.setdefault(node.name, set()).add((path, signature(node)))
    return found


def methods(text: str, class_name: str) -> dict[str, str]:
    for node in tree(text).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return {part.name: signature(part) for part in node.body if isinstance(part, ast.FunctionDef)}
    return {}


def calls(text: str) -> Iterator[str]:
    """The calls we care about in the order of the text, with what they are given: `name(positional, keywords)`."""
    nodes = [node for node in ast.walk(tree(text)) if isinstance(node, ast.Call)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if last in ORDERED:
            keywords = sorted(str(keyword.arg) for keyword in node.keywords)
            yield f"{last}({len(node.args)}, {keywords})"
        elif name in ORDERED_METHODS:
            yield name


def order(text: str) -> list[str]:
    """The calls in their order; a call that comes twice on end counts once, and so do all the preparations.

    Upstream writes a call once for each way of training (several optimizers, DeepSpeed, frozen text encoders); the
    miniature has one of them. Of all the preparations, the first after the scheduler is the optimizer's.
    """
    found: list[str] = []
    for call in calls(text):
        after_the_scheduler = bool(found) and found[-1].startswith("get_scheduler_fix(")
        if found[-1:] != [call] and (call != PREPARE or after_the_scheduler):
            found.append(call)
    return found


@pytest.mark.parametrize("era", ERAS)
def test_functions_are_defined_in_the_same_module_with_the_same_parameters(era: str) -> None:
    theirs = signatures({path: real(era, path) for path in real_modules(era) if path in miniature(era)})
    ours = signatures({path: text for path, text in miniature(era).items() if path.startswith("library/")})
    assert ours == theirs
    wanted = {hook.functions for hook in HOOKS if not hook.needs_flag or era in ("v24", "v26")}
    assert all(any(name in ours for name in names) for names in wanted), "the miniature lacks a hook"


@pytest.mark.parametrize("era", ERAS)
def test_no_other_module_defines_a_hook(era: str) -> None:
    """What the miniature leaves out holds no hook that it should have had."""
    left_out = {path: real(era, path) for path in real_modules(era) if path not in miniature(era)}
    assert set(signatures(left_out)) & HOOKED <= {"sample_images", "save_sd_model_on_train_end"} | {
        "save_sd_model_on_epoch_end_or_stepwise"
    }


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_call_in_the_same_order(era: str, script: str) -> None:
    if era == "v06" and script.startswith("sdxl"):
        pytest.skip("sd-scripts 0.6 has no SDXL")
    assert order(miniature(era)[script]) == order(real(era, script))


@pytest.mark.parametrize("era", ERAS)
def test_networks_and_trainers_have_the_same_methods(era: str) -> None:
    def compared(read: Reader) -> dict[str, str]:
        network = methods(read("networks/lora.py"), "LoRANetwork")
        trainer = methods(read("train_network.py"), "NetworkTrainer")
        chosen = {f"network.{name}": network.get(name, "") for name in NETWORK_METHODS}
        return chosen | {f"trainer.{name}": trainer.get(name, "") for name in TRAINER_METHODS}

    assert compared(lambda path: miniature(era)[path]) == compared(lambda path: real(era, path))


@pytest.mark.parametrize("era", ERAS)
def test_the_module_we_replace_is_empty_there_too(era: str) -> None:
    assert real(era, "library/__init__.py") == miniature(era)["library/__init__.py"] == ""
