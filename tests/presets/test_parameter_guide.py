from __future__ import annotations

from pathlib import Path

from kohya_ext.presets.guide import ADVICE
from kohya_ext.presets.parameter_guide import as_markdown
from kohya_ext.presets.settings import SECTIONS, described

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "parameters.md"


def test_the_page_is_made_from_the_texts() -> None:
    assert PAGE.read_text("utf-8") == as_markdown(), "run `python -m kohya_ext.presets.parameter_guide` for the page"


def test_every_setting_is_there_once_with_a_text_and_the_guides_advice() -> None:
    keys = [key for texts in SECTIONS.values() for key in texts]
    assert len(keys) == len(set(keys))
    page = as_markdown()
    for key in keys:
        assert page.count(f"| `{key}` | {described(key)} |") == 1
    for key, (_, reason) in ADVICE.items():
        assert reason in next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
    assert all(text and "|" not in text and len(text) < 110 for texts in SECTIONS.values() for text in texts.values())
