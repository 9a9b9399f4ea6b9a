from __future__ import annotations

import ast
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.scan import scan
from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.files.atomic import sha256
from kohya_ext.install import patchset

SETS = ("hook", "inline")
HEAD = "format = 2\nname = 'x'\nsummary = ''\n"
EDIT = "edit = [{kind = 'empty_module', root = 'gui', files = '*'}]\n"
LINES = "# >>> kohya_ext 9 >>>\nimport kohya_ext.runtime\n\nkohya_ext.runtime.CALL\n# <<< kohya_ext <<<\n"


def targets(checkout: Checkout, name: str) -> list[str]:
    found = patchset.load(name).targets(checkout, scan(checkout))
    return [target.path.relative_to(checkout.root).as_posix() for target in found]


@pytest.mark.parametrize(
    ("era", "hook", "inline"),
    [
        ("embedded", ["library/__init__.py"], ["library/train_util.py", "library/class_basic_training.py"]),
        ("bare", ["library/__init__.py"], ["library/train_util.py"]),
        (
            "submodule",
            ["sd-scripts/library/__init__.py", "kohya_gui/__init__.py"],
            ["sd-scripts/library/train_util.py", "kohya_gui/class_basic_training.py"],
        ),
        (
            "split",
            ["sd-scripts/library/__init__.py", "kohya_gui/__init__.py"],
            [
                "sd-scripts/library/args.py",
                "sd-scripts/library/optimizer.py",
                "sd-scripts/library/accelerator_setup.py",
                "sd-scripts/library/checkpoint_io.py",
                "sd-scripts/library/sampling.py",
                "sd-scripts/library/adafactor_fused.py",
                "sd-scripts/library/flux_train_utils.py",
                "kohya_gui/class_basic_training.py",
            ],
        ),
    ],
)
def test_targets(make: Callable[..., Checkout], era: str, hook: list[str], inline: list[str]) -> None:
    checkout = make(era)
    assert targets(checkout, "hook") == hook
    assert targets(checkout, "inline") == inline


def test_missing_target(make: Callable[..., Checkout]) -> None:
    checkout = make("submodule")
    (checkout.root / "kohya_gui/__init__.py").unlink()
    with pytest.raises(UnsupportedError, match=r"an incomplete checkout.*checkout.*kohya_gui/__init__\.py"):
        targets(checkout, "hook")


@pytest.mark.parametrize("name", SETS)
def test_block_is_old_python_and_leaves_no_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = patchset.load(name).block
    ast.parse(block, feature_version=(3, 8))
    assert all(len(line) < 140 for line in block.splitlines())
    package, runtime = types.ModuleType("kohya_ext"), types.ModuleType("kohya_ext.runtime")
    package.runtime = runtime  # type: ignore[attr-defined]
    runtime.activate = runtime.install = lambda given: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kohya_ext", package)
    monkeypatch.setitem(sys.modules, "kohya_ext.runtime", runtime)
    names: dict[str, object] = {"__name__": "library"}
    exec(block, names)
    assert set(names) == {"__name__", "__builtins__"}


def test_the_lines_get_the_call_of_their_patch_set() -> None:
    made = patchset.parse(HEAD + EDIT + "[block]\ncall = 'go(1)'", Path("some.toml"), LINES)
    assert made.block == LINES.replace("CALL", "go(1)")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = 2",
        HEAD.replace("2", "3") + EDIT + "[block]\ncall = 'go()'",
        HEAD + EDIT + "[block]\ntext = 'go()'",
        HEAD + EDIT + "[block]\ncall = 'go('",
        HEAD + "edit = [{kind = 'delete', root = 'training', files = '*'}]\n[block]\ncall = 'go()'",
        HEAD + "edit = [{kind = 'append_to_definers', root = 'gui', files = '*'}]\n[block]\ncall = 'go()'",
        HEAD + "edit = 3\n[block]\ncall = 'go()'",
        "format = = 1",
    ],
)
def test_wrong_files(text: str) -> None:
    with pytest.raises(UsageError, match=r"some\.toml"):
        patchset.parse(text, Path("some.toml"), LINES)


@pytest.mark.parametrize(
    "lines", ["", "import kohya_ext\n", LINES.strip(), LINES + "\n", LINES.replace("kohya_ext.", "x.")]
)
def test_wrong_lines(lines: str) -> None:
    with pytest.raises(UsageError, match="the block must begin"):
        patchset.parse(HEAD + EDIT + "[block]\ncall = 'go()'", Path("some.toml"), lines)


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"there is no patch set '\.\./hook'"):
        patchset.load("../hook")


@pytest.mark.parametrize(
    ("data", "empty"),
    [
        (b"", True),
        (b"\xef\xbb\xbf\r\n", True),
        (b"# nothing\n", True),
        (b'"""text"""\r\n', True),
        (b"pass\n", False),
        (b"'a'\n'b'\n", False),
        (b"1\n", False),
        (b"def (", False),
        (b"\0", False),
    ],
)
def test_is_empty_module(data: bytes, empty: bool) -> None:
    assert patchset.is_empty_module(data) is empty


@given(data=st.binary(max_size=60).filter(lambda data: patchset.MARKER not in data), name=st.sampled_from(SETS))
def test_a_block_can_be_taken_out_again(data: bytes, name: str) -> None:
    patched = patchset.load(name).patched(data)
    assert patchset.unpatched(patched, sha256_before=sha256(data)) == data
    assert patchset.unpatched(patched + b"x = 1\n") is None
    assert patchset.unpatched(data) is None
