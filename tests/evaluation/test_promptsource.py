"""Prompt files in TOML and JSON: what sd-scripts makes of them, written out here once more from its behaviour."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.promptfile import Prompt
from kohya_ext.evaluation.promptsource import read

TOML = r"""
[prompt]
width = 1030
height = 768
negative_prompt = "ugly \\(very\\)"

[[prompt.subset]]
prompt = "a cat -- with a hat --w 64"
seed = 0
sample_steps = 5

[[prompt.subset]]
prompt = "n a (red:1.2) dog"
scale = 4
sample_sampler = "euler"
"""


def written(tmp_path: Path, name: str, content: str) -> Path:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path / name


def test_toml(tmp_path: Path) -> None:
    """Flags in a text are none there, sides are multiples of 8, and the table gives what all have in common."""
    found = read(written(tmp_path, "p.toml", TOML))
    assert found.prompts == (
        Prompt("a cat -- with a hat --w 64", 1024, 768, 5, 7.5, 0, "ugly (very)"),
        Prompt("n a (red:1.2) dog", 1024, 768, 30, 4.0, None, "ugly (very)"),
    )
    assert found.weighted and found.ignored == ()


def test_json(tmp_path: Path) -> None:
    """Objects and lines may be mixed; a line has its flags, and `#` is no comment there."""
    content = [
        {"prompt": "a cat", "seed": -1, "height": 10, "negative_prompt": None, "steps": 4},
        "# a dog --w 1024 --d 7 --s 5000", {}, {"prompt": "x", "seed": None, "enum": 3, "scale": 1},
    ]  # fmt: skip
    found = read(written(tmp_path, "p.json", json.dumps(content)))
    assert found.prompts == (
        Prompt("a cat", 512, 64, 30, 7.5, -1),
        Prompt("# a dog", 1024, 512, 1000, 7.5, 7),
        Prompt(""),
        Prompt("x", cfg=1.0),
    )
    assert not found.weighted and found.ignored == ("steps",) and found.joined == ()
    (tmp_path / "b.json").write_text('["a cat --w 64--h 64", {"prompt": "a dog--d 1"}]')
    assert read(tmp_path / "b.json").joined == ("--h 64",)  # the text of a table has no flags


def test_other_names_are_text(tmp_path: Path) -> None:
    for name in ("p.txt", "p", "p.md"):
        assert read(written(tmp_path, name, "# c\na cat --d 1\n")).prompts == (Prompt("a cat", seed=1),)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.toml", "[prompt]\nwidth = \n", r"not valid TOML.*line 2"),
        ("p.toml", 'prompt = "a cat"', r"no list \[\[prompt\.subset\]\]"),
        ("p.toml", '[[prompt]]\nprompt = "a"', r"no list \[\[prompt\.subset\]\]"),
        ("p.toml", "", r"no list \[\[prompt\.subset\]\]"),
        ("p.toml", "[prompt]\nsubset = []", "no prompt"),
        ("p.toml", "[prompt]\nsubset = [1]", "number 1 is not a table"),
        (
            "p.toml",
            "[prompt]\nwidth = 64\n[[prompt.subset]]\nseed = 1\n[[prompt.subset]]\nwidth = 8",
            "number 2: width",
        ),
        ("p.toml", '[prompt]\nwidth = "64"\n[[prompt.subset]]\nseed = 1', r"\[prompt\]: width = '64' is not a whole"),
        ("p.toml", "[prompt]\n[[prompt.subset]]\nprompt = 2020-01-01", r"number 1: prompt = .* is not a text"),
        ("p.json", '[\n {"prompt": "a",}\n]', "line 2, column"),
        ("p.json", '{"prompt": "a"}', "reads a list"),
        ("p.json", "[[]]", "prompt 1 is neither"),
        ("p.json", "[]", "no prompt"),
        ("p.json", "[" * 100_000, "not valid JSON"),
        ("p.json", '["a", {"prompt": null}]', "prompt 2: prompt = None is not a text"),
        ("p.json", '[{"width": true}]', "prompt 1: width = True is not a whole number"),
        ("p.json", '[{"sample_steps": 0}]', "sample_steps = 0 is not a number from 1 to 1000"),
        ("p.json", '[{"scale": NaN}]', "scale = nan is not a number"),
        ("p.json", '[{"seed": 99999999999999999999}]', "is not a number of at most 64 bits"),
        ("p.json", '[{"seed": 1.5}]', "is not a whole number"),
        ("p.toml", f"[prompt]\n[[prompt.subset]]\nwidth = 0x1{'0' * 9999}", "width = a huge number is not a number of"),
        ("p.json", '[{"scale": [1]}]', "scale = a list is not a number"),
        ("p.txt", "# only", "no prompt"),
    ],
)
def test_what_is_wrong_is_located(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UsageError, match=words) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_without_pythons_own_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10 reads by what Kohya or pip bring along."""
    expected = read(written(tmp_path, "p.toml", TOML))
    for module in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, module, None)
    assert read(tmp_path / "p.toml") == expected


@pytest.mark.parametrize("name", ["prompts.TOML", "prompts.Json", "prompts.JSON"])
def test_an_ending_that_sd_scripts_does_not_know_is_no_list_of_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('["a dog"]')
    with pytest.raises(UsageError, match=f"rename it to {name.lower()}"):
        read(path)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    """sd-scripts keeps it in the first prompt of a .txt, and stops at it in the others."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa dog\n")
    assert read(tmp_path / "a.txt").marked and read(tmp_path / "a.txt").prompts[0].text == "a dog"
    (tmp_path / "b.txt").write_bytes(b"a dog\n")
    assert not read(tmp_path / "b.txt").marked
    for name, text in (("a.json", b'["a dog"]'), ("a.toml", b'[prompt]\n[[prompt.subset]]\nprompt = "a dog"')):
        (tmp_path / name).write_bytes(text)
        assert read(tmp_path / name).prompts[0].text == "a dog"
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text)
        with pytest.raises(UsageError, match="byte order mark"):
            read(tmp_path / name)
