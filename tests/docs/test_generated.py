"""The pages say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from kohya_ext.core import about
from kohya_ext.presets.guide import ADVICE
from kohya_ext.presets.settings import SECTIONS, described
from kohya_ext.spec.flags import FLAGS
from tests.upstream import ema_results

ROOT = Path(__file__).resolve().parents[2]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_up_to_date() -> None:
    stale = _generator().stale(write=False)
    assert not stale, f"run `python docs/generate.py`: {', '.join(stale)}"


def test_a_section_is_written_anew_and_the_rest_of_the_page_stays() -> None:
    page = "before\n<!-- generated: flags -->\nstale words\n<!-- end of generated -->\nafter\n"
    text = _generator().generated("docs/reference/flags.md", page)
    assert text.startswith("before\n<!-- generated: flags -->\n") and text.endswith(
        "<!-- end of generated -->\nafter\n"
    )
    assert "stale words" not in text and "`--enable_ema`" in text


def test_a_fork_changes_its_address_in_one_place() -> None:
    text = _generator().generated("README.md", "git clone https://github.com/somebody/kohya_ext && cd kohya_ext")
    assert text == f"git clone {about.REPOSITORY} && cd kohya_ext"


@pytest.mark.parametrize("flag", [flag.name for flag in FLAGS])
def test_every_flag_is_explained_by_hand_too(flag: str) -> None:
    """The generated table repeats --help; the page says what the flag does to a run."""
    page = (ROOT / "docs" / "reference" / "flags.md").read_text(encoding="utf-8")
    by_hand = re.sub(r"<!-- generated.*?end of generated -->", "", page, flags=re.DOTALL)
    assert f"`{flag}`" in by_hand


def test_every_setting_is_there_once_with_a_text_and_the_guides_advice() -> None:
    keys = [key for texts in SECTIONS.values() for key in texts]
    assert len(keys) == len(set(keys))
    page = _generator().settings()
    for key in keys:
        assert page.count(f"| `{key}` | {described(key)} |") == 1
    for key, (_, reason) in ADVICE.items():
        assert reason in next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
    assert all(text and "|" not in text and len(text) < 110 for texts in SECTIONS.values() for text in texts.values())


def test_the_ema_table_says_run_only_where_a_run_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = _generator()
    monkeypatch.setattr(generator, "EMA_RESULTS", tmp_path / "results.json")
    monkeypatch.setenv(ema_results.VARIABLE, str(tmp_path / "results.json"))
    main, newest = (generator.TREES[column] for column in ("main", "v0.11.1"))
    ema_results.keep_releases({"flux_train": {main: "checkpoint", newest: "checkpoint"}})
    with ema_results.recorded("flux_train", main):
        pass
    assert "| `flux_train` | checkpoint |  |  |  | run | stub |" in generator.ema_scripts()
    with pytest.raises(AssertionError), ema_results.recorded("flux_train", main):
        raise AssertionError
    assert "| `flux_train` | checkpoint |  |  |  | stub | stub |" in generator.ema_scripts()
