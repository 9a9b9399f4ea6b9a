"""Our `gr` reaches every optimizer list of every release: each is a call `gr.Dropdown(label=..., choices=[...])`."""

from __future__ import annotations

import ast
import os
import types
from typing import Any

import pytest

from kohya_ext.runtime.gui import GradioWithOurs
from kohya_ext.spec.hooks import OPTIMIZER_LABEL, OPTIMIZER_LANDMARK
from kohya_ext.spec.optimizers import ADACOOR
from tests.upstream import trees

pytestmark = [pytest.mark.upstream, pytest.mark.filterwarnings("ignore::SyntaxWarning")]

EXPECTED = {"v26.0.0": 3, "master": 3}


def modules(revision: str) -> dict[str, str]:
    """The GUI's modules that mention the landmark."""
    git_dir = os.environ["KOHYA_SS_GIT"]
    paths = trees.git(git_dir, "ls-tree", "-r", "--name-only", revision, "library/", "kohya_gui/").splitlines()
    wanted = [path for path in paths if path.endswith(("class_basic_training.py", "_gui.py"))]
    texts = {path: trees.git(git_dir, "show", f"{revision}:{path}") for path in wanted}
    return {path: text for path, text in texts.items() if OPTIMIZER_LANDMARK in text}


def made(call: ast.Call, gr: Any) -> dict[str, Any]:
    """Evaluate the real call with our `gr` around a gradio that records; other arguments may be anything."""
    kept = [word for word in call.keywords if word.arg in ("label", "choices")]
    expression = ast.Expression(ast.Call(call.func, [], kept))
    result: dict[str, Any] = eval(compile(ast.fix_missing_locations(expression), "<tab>", "eval"), {"gr": gr})
    return result


@pytest.mark.parametrize("revision", trees.kohya_revisions() if os.environ.get("KOHYA_SS_GIT") else ["master"])
def test_adacoor_is_offered(revision: str) -> None:
    gradio = types.ModuleType("gradio")
    gradio.Dropdown = lambda **words: words  # type: ignore[attr-defined]
    offered = 0
    for path, text in modules(revision).items():
        tree = ast.parse(text)
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            labels = [w.value.value for w in call.keywords if w.arg == "label" and isinstance(w.value, ast.Constant)]
            if OPTIMIZER_LABEL not in labels:
                continue
            assert any(isinstance(n, ast.Import) and "gr" in [a.asname for a in n.names] for n in tree.body), path
            words = made(call, GradioWithOurs(gradio))
            assert words["choices"][0] == ADACOOR.name, path
            assert OPTIMIZER_LANDMARK in words["choices"], path
            offered += 1
    assert offered == EXPECTED.get(revision, 1)
