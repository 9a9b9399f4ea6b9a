"""Every script of every release that fuses backward and step does it in the way the rig's runs prove for some of them.

Those runs need a model; Flux, SD3, Lumina and Anima have none on the rig. What our wrapping leans on is read in all:
the optimizer is made and patched through module attributes, only Kohya's `get_optimizer` asks for Adafactor, and a
gradient is freed right after its parameter's step.
"""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest

from tests.upstream import trees
from tests.upstream.test_ema_scripts import scripts

pytestmark = [pytest.mark.upstream, pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")]

PATCH = "library.adafactor_fused.patch_adafactor_fused(optimizer)"
STEPS = ("optimizer.step_param(tensor, param_group)", "optimizer.step_param(tensor, p_group)")
GROUPED = ("fused_optimizer_groups", "blockwise_fused_optimizers")
NEWEST = {
    "anima_train.py",
    "flux_train.py",
    "flux_train_control_net.py",
    "lumina_train.py",
    "sd3_train.py",
    "sdxl_train.py",
    "sdxl_train_control_net.py",
    "train_control_net.py",
}


def revisions() -> list[str]:
    """The revisions of sd-scripts that have the flag: its releases, and what Kohya's GUI pins."""
    if not os.environ.get("SD_SCRIPTS_GIT"):
        return []
    pins = []
    for release in trees.kohya_revisions():
        entry = trees.git(os.environ["KOHYA_SS_GIT"], "ls-tree", release, "sd-scripts").split()
        pins += [entry[2]] if entry and entry[0] == "160000" else []
    known = dict.fromkeys([*trees.sd_scripts_revisions(), *pins])
    return [revision for revision in known if "adafactor_fused.py" in _library(revision)]


def _where(revision: str) -> str:
    for variable in ("SD_SCRIPTS_GIT", "SD_SCRIPTS_FORK_GIT"):
        try:
            trees.git(os.environ[variable], "cat-file", "-e", f"{revision}:train_network.py")
        except subprocess.CalledProcessError:  # the other one has it
            continue
        return variable
    raise LookupError(revision)


@cache
def _library(revision: str) -> dict[str, str]:
    git_dir = os.environ[_where(revision)]
    names = trees.git(git_dir, "ls-tree", "--name-only", revision, "library/").split()
    wanted = [
        name for name in names if name.rpartition("/")[2] in ("adafactor_fused.py", "train_util.py", "optimizer.py")
    ]
    return {name.rpartition("/")[2]: trees.git(git_dir, "show", f"{revision}:{name}") for name in wanted}


def fusing(revision: str) -> dict[str, ast.Module]:
    """Name -> the scripts that fuse."""
    found = {}
    for name, text in scripts(_where(revision), revision).items():
        parsed = ast.parse(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))
        if PATCH in _calls(parsed):
            found[name] = parsed
    return found


def _calls(within: ast.AST) -> list[str]:
    return [ast.unparse(node) for node in ast.walk(within) if isinstance(node, ast.Call)]


def _blocks(within: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(within):
        yield from (body for name in ("body", "orelse") if isinstance(body := getattr(node, name, None), list))


def _after(within: ast.AST, *statements: str) -> list[str]:
    """What stands right behind each of these statements."""
    found = []
    for block in _blocks(within):
        texts = [ast.unparse(one) for one in block]
        found += [after for text, after in itertools.pairwise([*texts, ""]) if text in statements]
    return found


@pytest.mark.parametrize("revision", revisions())
def test_scripts_that_fuse(revision: str) -> None:
    found = fusing(revision)
    assert "sdxl_train.py" in found
    for name, script in found.items():
        assert _after(script, *STEPS) == ["tensor.grad = None"], name
        makers = [call for call in _calls(script) if call.partition("(")[0].endswith("get_optimizer")]
        assert makers, name
        assert all(maker.startswith(("train_util.", "optimizer_util.")) for maker in makers), (name, makers)
        demands = [ast.unparse(node).lower() for node in ast.walk(script) if isinstance(node, ast.Assert)]
        assert not [demand for demand in demands if "adafactor" in demand or "optimizer_type" in demand], name
        if any(f"args.{flag}" in ast.unparse(script) for flag in GROUPED):
            assert _after(script, "optimizers[i].step()") == ["optimizers[i].zero_grad(set_to_none=True)"], name


@pytest.mark.parametrize("revision", revisions())
def test_only_the_maker_of_optimizers_asks_for_adafactor(revision: str) -> None:
    for text in _library(revision).values():
        module = ast.parse(text)
        wanting = {
            function.name
            for function in ast.walk(module)
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Assert) and "fused" in ast.unparse(node) and "dafactor" in ast.unparse(node)
        }
        assert wanting <= {"get_optimizer"}, wanting


def test_nothing_newer_is_left_out() -> None:
    assert fusing(trees.V0_11_1).keys() == NEWEST
