"""The current major version stays whole; each older one becomes a line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.card.changelog import parse, pruned

LOG = """# Change log

## Unreleased
- not for the page

## [2.1.0] - 2023-12-05
- retrained with AdaCoor

### Fixed
- hands

## v2.0 (2023-11-20)
- new data set

## Version 1.10 10.10.2023
- better eyes
- and more

## 1.9
- first
"""


def test_versions_are_found_in_every_spelling() -> None:
    found = parse(LOG)
    assert [version.name for version in found] == ["2.1.0", "2.0", "1.10", "1.9"]
    assert [version.date for version in found] == ["2023-12-05", "2023-11-20", "10.10.2023", ""]
    assert "not for the page" not in "".join(version.text for version in found)


def test_older_majors_shrink_to_a_line() -> None:
    lines = "\n".join(pruned(parse(LOG)))
    assert "### 2.1.0 (2023-12-05)" in lines and "- hands" in lines and "- new data set" in lines
    assert "- **1.x** (1.9 to 1.10, 10.10.2023): better eyes" in lines
    assert lines.count("### Earlier\n\n- **1.x**") == 1, "a list of its own"
    assert "and more" not in lines and "- first" not in lines


def test_the_newest_number_is_current_wherever_it_stands() -> None:
    assert pruned(parse("## 1.0\n- old\n## 2.0\n- new\n"))[0] == "### 2.0"


def test_headings_in_code_are_none() -> None:
    assert [version.name for version in parse("## 1.0\n```\n## 2.0\n```\n")] == ["1.0"]


def test_a_long_entry_is_cut() -> None:
    line = pruned(parse("## 2\n- x\n## 1\n- " + "word " * 60))[-1]
    assert len(line) < 140 and line.endswith("word ...")


@given(st.text(alphabet="#[]v1.2 \n`-ab()", max_size=120))
def test_anything_is_read(text: str) -> None:
    pruned(parse(text))
