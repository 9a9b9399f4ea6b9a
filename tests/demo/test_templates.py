"""Templates: which lines and files an era gets, and how split modules become one again."""

from __future__ import annotations

import ast

import pytest

from kohya_ext.demo.templates import ERAS, exists, join, render

TEMPLATE = """always
#: before v24
old
#: since v24 before v26
middle
    #: since v26
new
#: end
always too
"""


@pytest.mark.parametrize(("era", "line"), [("v06", "old"), ("v22", "old"), ("v24", "middle"), ("v26", "new")])
def test_an_era_gets_its_own_lines(era: str, line: str) -> None:
    assert render(TEMPLATE, era) == f"always\n{line}\nalways too\n"


def test_a_file_may_belong_to_some_eras_only() -> None:
    template = "#: file since v24\nx = 1\n"
    assert [exists(template, era) for era in ERAS] == [False, False, True, True]
    assert render(template, "v26") == "x = 1\n"
    assert exists("x = 1\n", "v06")


def test_an_unknown_era_in_a_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        render("#: since v23\nx\n", "v24")


def test_split_modules_were_one_before_v26() -> None:
    text = "optimizer_util.get_optimizer(args)\noptimizer.step()\ncheckpoint_io.save()\n"
    assert render(text, "v26") == text
    assert render(text, "v24") == "train_util.get_optimizer(args)\noptimizer.step()\ntrain_util.save()\n"


def test_joined_modules_share_one_head_of_imports() -> None:
    one = '"""One."""\n\nimport os\nfrom a import b\n\n\ndef f():\n    return os\n'
    two = '"""Two."""\n\nimport os\nimport ast\n\n\ndef g():\n    import re\n    return re\n'
    text = join([one, two], "v22")
    body = ast.parse(text).body
    assert [type(node).__name__ for node in body[1:]] == [
        "Import",
        "Import",
        "ImportFrom",
        "FunctionDef",
        "FunctionDef",
    ]
    assert text.count("import os") == 1 and "One." not in text and "    import re" in text
