"""Promise 9 at run time: a tree with the old replaced files is left alone, and our flags are refused there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.test_wrapping import python, write

START = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
OLD_FLAGS = """
    def add_optimizer_arguments(parser): ...

    def add_training_arguments(parser, support_dreambooth):
        parser.add_argument('--enable_ema', action='store_true')
"""
PARSE = """
    import argparse, sys
    sys.argv = ["train.py", *{words!r}]
    import library.train_util as t
    parser = argparse.ArgumentParser()
    try:
        t.add_optimizer_arguments(parser)
        t.add_training_arguments(parser, False)
        print("parsed")
    except SystemExit as stopped:
        print("stopped with", stopped.code)
"""


def test_a_run_without_our_flags_goes_on(tmp_path: Path) -> None:
    write(tmp_path, {"library/__init__.py": START, "library/train_util.py": OLD_FLAGS})
    printed = python(tmp_path, PARSE.format(words=[]))
    assert "git -C" in printed
    assert printed.endswith("parsed")


@pytest.mark.parametrize("words", [["--enable_ema"], ["--optimizer_type=adacoor"], ["--optimizer_type", "AdaCoor"]])
def test_a_run_with_our_flags_is_refused(tmp_path: Path, words: list[str]) -> None:
    write(tmp_path, {"library/__init__.py": START, "library/train_util.py": OLD_FLAGS})
    assert python(tmp_path, PARSE.format(words=words)).endswith("stopped with 4")


@pytest.mark.parametrize("name", ["AdaCoor", "EMAModel"])
def test_old_classes_are_recognised(tmp_path: Path, name: str) -> None:
    files = {
        "library/__init__.py": START,
        "library/old.py": f"class {name}: ...\n",
        "library/train_util.py": f"from library.old import {name}\ndef add_optimizer_arguments(parser): ...\n"
        "def add_training_arguments(parser, support_dreambooth): ...\n",
    }
    write(tmp_path, files)
    assert python(tmp_path, PARSE.format(words=["--enable_ema"])).endswith("stopped with 4")


def test_a_class_that_is_only_imported_is_no_sign(tmp_path: Path) -> None:
    files = {
        "library/__init__.py": START,
        "elsewhere.py": "class EMAModel: ...\n",
        "library/train_util.py": "from elsewhere import EMAModel\ndef add_optimizer_arguments(parser): ...\n"
        "def add_training_arguments(parser, support_dreambooth): ...\n",
    }
    write(tmp_path, files)
    assert python(tmp_path, PARSE.format(words=["--enable_ema"])) == "parsed"
