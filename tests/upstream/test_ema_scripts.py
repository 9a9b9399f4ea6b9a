"""The table of docs/reference/ema-scripts.md is true: every script of every release saves in a way that we reach.

A cell says `run` where tests/upstream/test_rig*.py trains that script, `stub` where a miniature that saves in the same
way stands for it, and nothing where the release has no such script.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.upstream import trees

pytestmark = [pytest.mark.upstream, pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "ema-scripts.md"

# columns of the table -> (the variable that names the repository, the revision), and the rig's tree
ERAS = {
    "v0.6.6": (("SD_SCRIPTS_GIT", "v0.6.6"), "sd-scripts-0.6.6"),
    "v22.3.1": (("KOHYA_SS_GIT", "v22.3.1"), "kohya_ss-v22"),
    "v0.8.7": (("SD_SCRIPTS_GIT", "v0.8.7"), "sd-scripts-0.8.7"),
    "main": (("SD_SCRIPTS_GIT", "main"), "sd-scripts-main"),
    "v0.11.1": (("SD_SCRIPTS_FORK_GIT", trees.V0_11_1), "sd-scripts-0.11.1"),
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


def table() -> dict[tuple[str, str], str]:
    """(script, era) -> cell, without its footnote."""
    text = PAGE.read_text(encoding="utf-8")
    lines = text[text.index("| script |") :].partition("\n\n")[0].splitlines()
    rows = [line.strip()[1:-1].split("|") for line in lines]
    columns = [cell.strip(" `") for cell in rows[0]]
    assert columns[2:] == list(ERAS)
    return {
        (row[0].strip(" `"), era): re.sub(r"<sup>.*", "", cell).strip()
        for row in rows[2:]
        for era, cell in zip(columns[2:], row[2:], strict=True)
    }


def trained_on_the_rig() -> set[tuple[str, str]]:
    pytest.importorskip("torch")
    from tests.upstream import rig, test_rig_families, test_rig_scripts

    eras = {tree: era for era, (_, tree) in ERAS.items()}
    assert set(eras) == {*rig.TREES, *rig.FURTHER_TREES}
    by_kind = {
        (script, eras[tree]) for tree in rig.TREES for script in ("sdxl_train", "sdxl_train_network", "fine_tune")
    }
    return by_kind | {(script, eras[tree]) for tree, script in (*test_rig_scripts.RUNS, *test_rig_families.RUNS)}


def test_the_table_is_true() -> None:
    cells = table()
    run = trained_on_the_rig()
    for era, ((variable, revision), _) in ERAS.items():
        there = {name.removesuffix(".py") for name in scripts(variable, revision)}
        listed = {script for (script, column), cell in cells.items() if column == era and cell}
        assert listed == there, era
    assert {key for key, cell in cells.items() if cell == "run"} == run
    assert set(cells.values()) == {"run", "stub", ""}
