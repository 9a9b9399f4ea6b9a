"""The miniature checkout as the installer finds it: real git, real structure, reproducible."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.core.errors import UsageError
from kohya_ext.demo.checkout import BY_NAME, ERAS, MARK, SUBMODULE, build, exists, files, join, render, training_root
from kohya_ext.spec.hooks import HOOKS

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


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("era", ERAS)
def test_it_is_described_as_the_era_it_stands_for(era: str, tmp_path: Path) -> None:
    root = build(era, tmp_path / "kohya with space")
    checkout = describe(root)
    kind = BY_NAME[era]
    assert (checkout.layout, checkout.release) == (kind.layout, kind.release)
    assert checkout.training_root == training_root(root).resolve()
    assert git(root, "status", "--porcelain") == ""


@pytest.mark.parametrize("era", ERAS)
def test_every_file_compiles_and_no_mark_is_left(era: str) -> None:
    for path, text in files(era).items():
        if path.endswith(".py"):
            compile(text, path, "exec")
            assert MARK not in text, path


@pytest.mark.parametrize("era", ERAS)
def test_every_hook_of_the_era_is_defined_once(era: str) -> None:
    texts = {path: text for path, text in files(era).items() if "library/" in path}
    for hook in HOOKS:
        defined = [
            path
            for path, text in texts.items()
            for name in hook.functions[:1]
            if f"\ndef {name}(" in text and not path.endswith("flux_train_utils.py")
        ]
        older = any(f"\ndef {name}(" in text for text in texts.values() for name in hook.functions[1:])
        if hook.needs_flag and era in ("v06", "v22"):
            assert defined == []
        else:
            assert len(defined) == 1 or (era == "v06" and older), hook.key


def test_two_builds_are_the_same_commit(tmp_path: Path) -> None:
    one, two = build("v26", tmp_path / "one"), build("v26", tmp_path / "two")
    assert git(one, "rev-parse", "HEAD") == git(two, "rev-parse", "HEAD")


def test_the_submodule_is_one_to_git(tmp_path: Path) -> None:
    root = build("v24", tmp_path / "kohya")
    assert git(root, "submodule", "status").split()[1] == SUBMODULE
    assert (root / SUBMODULE / ".git").is_file()
    (root / SUBMODULE / "library" / "__init__.py").write_text("x = 1\n", encoding="utf-8")
    git(root, "submodule", "update", "--force")
    assert (root / SUBMODULE / "library" / "__init__.py").read_text(encoding="utf-8") == ""


def test_the_users_git_settings_have_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[core]\n\tautocrlf = true\n\thooksPath = /nonexistent\n[commit]\n\tgpgsign = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    root = build("v06", tmp_path / "kohya")
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_CONFIG_GLOBAL")
    assert git(root, "log", "--format=%an") == "miniature\n"


def test_without_git_there_are_plain_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    root = build("v26", tmp_path / "kohya")
    assert not (root / ".git").exists()
    assert describe(root).release == "v26.0.0"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        build("v26", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
