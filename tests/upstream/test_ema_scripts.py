"""Every script of every release saves in a way that we reach, and what the table of ema-scripts.md is made of is true.

A cell says `run` where tests/upstream/test_rig*.py has trained that script, `stub` where a miniature that saves in the
same way stands for it, and nothing where the release has no such script.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.upstream import ema_results, trees

pytestmark = [pytest.mark.upstream, pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")]

# the rig's trees -> the variable that names the repository, and the revision
TREES = {
    "sd-scripts-0.6.6": ("SD_SCRIPTS_GIT", "v0.6.6"),
    "kohya_ss-v22": ("KOHYA_SS_GIT", "v22.3.1"),
    "sd-scripts-0.8.7": ("SD_SCRIPTS_GIT", "v0.8.7"),
    "sd-scripts-main": ("SD_SCRIPTS_GIT", "main"),
    "sd-scripts-0.11.1": ("SD_SCRIPTS_FORK_GIT", trees.V0_11_1),
}
# the ways, and the miniature that saves so
WAYS = {
    "checkpoint": "sdxl_train",
    "network": "train_network",
    "LLLite": "sdxl_train_control_net_lllite",
    "embeddings": "train_textual_inversion",
    "ControlNet": "train_control_net",
    "LLLite function": "anima_train_control_net_lllite",
}


def revisions() -> Iterator[tuple[str, str]]:
    """Every release that has training scripts of its own."""
    if not os.environ.get("SD_SCRIPTS_GIT"):
        return
    for revision in trees.sd_scripts_revisions():
        yield ("SD_SCRIPTS_FORK_GIT" if revision == trees.V0_11_1 else "SD_SCRIPTS_GIT"), revision
    for revision in trees.kohya_revisions():
        if "train_network.py" in scripts("KOHYA_SS_GIT", revision):
            yield "KOHYA_SS_GIT", revision


@cache
def scripts(variable: str, revision: str) -> dict[str, str]:
    """Name -> text of the top-level programs that train."""
    git_dir = os.environ[variable]
    names = trees.git(git_dir, "ls-tree", "--name-only", revision).split("\n")
    wanted = [name for name in names if re.search(r"(^|_)train(_\w+)?\.py$|^fine_tune\.py$", name)]
    return {name: trees.git(git_dir, "show", f"{revision}:{name}") for name in wanted}


def ways(name: str, every: dict[str, str]) -> set[str]:
    """How a script saves what it has trained. A thin script saves as the one it takes its trainer from."""
    tree = ast.parse(every[name].lstrip("\ufeff"))
    called = {_last(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    parameters = {argument.arg for node in functions if node.name == "save_weights" for argument in node.args.args}
    found = set()
    if any(re.match(r"save_\w+_on_train_end", call) and "state" not in call for call in called):
        found.add("checkpoint")
    if "updated_embs" in parameters:
        found.add("embeddings")
    elif "save_weights" in called:
        found.add("network")
    if "save_lllite_weights" in called:
        found.add("LLLite")
    if "save_lllite_model" in called:
        found.add("LLLite function")
    nested = [node for node in functions if node.name == "save_model" and _calls(node, "state_dict")]
    if any(_calls(node, "save_file") and _calls(node, "save") for node in nested):
        found.add("ControlNet")
    if found:
        return found
    parents = {node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)} | {
        node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    return {way for parent in parents if f"{parent}.py" in every for way in ways(f"{parent}.py", every)}


def _last(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _calls(function: ast.FunctionDef, name: str) -> bool:
    return any(isinstance(node, ast.Call) and _last(node.func) == name for node in ast.walk(function))


@pytest.mark.parametrize(("variable", "revision"), list(revisions()), ids=str)
def test_every_script_saves_in_one_way_that_we_reach(variable: str, revision: str) -> None:
    every = scripts(variable, revision)
    assert "fine_tune.py" in every
    found = {name: ways(name, every) for name in every}
    assert {name: way for name, way in found.items() if len(way) != 1 or not way <= set(WAYS)} == {}


def trained_on_the_rig() -> set[tuple[str, str]]:
    """(script, tree) of all that the rig's tests train and compare."""
    pytest.importorskip("torch")
    from tests.upstream import rig, test_rig_families, test_rig_schedules, test_rig_scripts

    assert set(TREES) == {*rig.TREES, *rig.FURTHER_TREES}
    by_kind = {(script, tree) for tree in rig.TREES for script in test_rig_schedules.SCRIPTS.values()}
    return by_kind | {(script, tree) for tree, script in (*test_rig_scripts.RUNS, *test_rig_families.RUNS)}


def test_what_the_table_is_made_of_is_true() -> None:
    releases: dict[str, dict[str, str]] = {}
    for tree, (variable, revision) in TREES.items():
        every = scripts(variable, revision)
        for name in every:
            releases.setdefault(name.removesuffix(".py"), {})[tree] = ways(name, every).pop()
    ema_results.keep_releases(releases)
    kept = json.loads(ema_results.RESULTS.read_text(encoding="utf-8"))
    assert kept["releases"] == releases
    assert {(script, tree) for script, trees in kept["runs"].items() for tree in trees} <= trained_on_the_rig()
