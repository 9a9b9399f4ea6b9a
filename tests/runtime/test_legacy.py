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


@pytest.mark.parametrize("words", [["--enable_ema"], ["--ema_decay=0.99"]])
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


@pytest.mark.parametrize(
    "settings", ["optimizer_type='adacoor'", "optimizer_type='kohya_ext.optim.AdaCoor'", "enable_ema=True"]
)
def test_settings_from_a_toml_are_refused_before_the_models_are_loaded(tmp_path: Path, settings: str) -> None:
    """The GUI writes them into a TOML, which Kohya reads into its args long after parsing."""
    accelerator = "def prepare_accelerator(args): return 'accelerator'\n"
    files = {"library/__init__.py": START, "library/train_util.py": OLD_FLAGS, "library/accelerator.py": accelerator}
    write(tmp_path, files)
    code = """
        import argparse
        import library.train_util, library.accelerator
        try:
            print(library.accelerator.prepare_accelerator(argparse.Namespace({settings})))
        except SystemExit as stopped:
            print("stopped with", stopped.code)
    """
    assert python(tmp_path, code.format(settings=settings)).endswith("stopped with 4")
    assert python(tmp_path, code.format(settings="optimizer_type='AdamW'")).endswith("accelerator")


def test_a_name_that_merely_looks_like_ours_is_no_sign(tmp_path: Path) -> None:
    write(tmp_path, {"library/__init__.py": START, "library/train_util.py": OLD_FLAGS})
    assert python(tmp_path, PARSE.format(words=["--output_name", "AdaCoor"])).endswith("parsed")
