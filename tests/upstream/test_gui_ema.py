"""The section of the EMA in the real GUI: nothing of upstream's changes, and the fields and the text are one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.schema import BUILDERS
from kohya_ext.spec.flags import FLAGS
from tests.upstream import real_gui
from tests.upstream.gui_section import NAMES, TEXT, Section, browsed
from tests.upstream.real_gui import ERAS, Era

pytestmark = pytest.mark.upstream

BUILDER = Path(__file__).with_name("gui_config.py")
TABS = [f"{module.removesuffix('.py')}:{builder}" for module, builder in BUILDERS.values()]
FIELDS = [flag.label for flag in FLAGS if flag.label]


def built(era: Era, tree: Path, fault: str = "") -> tuple[dict[str, Any], str]:
    """All four tabs as the browser gets them, and what was printed."""
    done = subprocess.run(
        [str(real_gui.python_of(era)), str(BUILDER), str(tree), fault, *TABS],
        capture_output=True, text=True, timeout=300, env=real_gui.environ_of(era, tree),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("name", ERAS)
def test_all_of_upstreams_is_as_it_is_without_us(name: str, tmp_path: Path) -> None:
    """Components, their values, and what is sent when: so saved configurations and TOML files cannot differ either."""
    era = ERAS[name]
    real_gui.require(era, browser=False)
    plain = real_gui.plain_copy(era, tmp_path / "plain")
    tree = real_gui.installed_copy(era, tmp_path / "ours")
    shutil.rmtree(tree / "presets")
    shutil.copytree(plain / "presets", tree / "presets")
    second = Path(
        shutil.copytree(tree, tmp_path / "broken", symlinks=True)
    )  # a GUI lists the folders that it made before
    without, _ = built(era, plain)
    assert without["our_events"] == 0
    ours, printed = built(era, tree)
    assert [label for label in ours["our_components"] if label in FIELDS] == FIELDS * len(TABS)
    assert ours["our_backend"] == []
    broken, said = built(era, second, fault="ema_section._footer,preset_notes._read,upgrades._recorded")
    lists = sum(one[1].get("label") == "Presets" for one in without["components"])
    assert lists == 2
    assert said.count("kohya_ext: internal error") == len(TABS) + lists
    assert said.count("kohya_ext: the presets may not fit") == 1
    assert "kohya_ext: " not in printed
    assert broken["our_events"] == 0
    assert broken["our_components"] == []
    for part in ("components", "layout", "events"):
        theirs = plainly(without[part], plain)
        assert plainly(ours[part], tree) == theirs, part
        assert plainly(broken[part], second) == theirs, part


def plainly(part: Any, tree: Path) -> str:
    """As text, without the checkout's folder and the time."""
    return re.sub(
        r"\d{10}\.\d+", "TIME", json.dumps(part).replace(str(tree), "TREE").replace(str(tree.parent), "FOLDER")
    )


@pytest.mark.parametrize("name", ERAS)
def test_fields_and_text_are_one(name: str, tmp_path: Path) -> None:
    era = ERAS[name]
    real_gui.require(era)
    tree = real_gui.installed_copy(era, tmp_path / "kohya_ss")
    with browsed(era, tree, tmp_path) as (page, config, posted):
        for tab in NAMES:
            section = Section(page, config, tab)
            section.shows(text="", enable_ema=False, ema_decay="0.9995", ema_device="auto")
            section.field("Enable EMA").check()
            section.type("EMA decay", "0.99912345")
            section.pick("EMA device", "cpu")
            edited = "--enable_ema --ema_decay=0.99912345 --ema_device=cpu"
            section.shows(text=edited, ema_decay="0.99912345")
            before = len(posted)
            page.get_by_role("button", name="Print training command").filter(visible=True).first.click()
            for _ in range(100):
                if any(f'"{edited}"' in one for one in posted[before:]):
                    break
                page.wait_for_timeout(200)
            assert any(f'"{edited}"' in one for one in posted[before:]), tab
            typed = "--x 'a  b' --ema_decay 0.25 --ema_sample=both --y"
            section.type(TEXT, typed)
            section.shows(text=typed, enable_ema=False, ema_decay="0.25", ema_sample="both", ema_device="auto")
            section.field("Enable EMA").check()
            section.shows(text="--x 'a  b' --ema_decay 0.25 --ema_sample=both --enable_ema --y")
            section.field("Enable EMA").uncheck()
            section.shows(text=typed)
            section.type(TEXT, " ")
            section.shows(ema_decay="0.9995", ema_sample="raw")
            section.type("EMA decay", "2.5")
            section.field("EMA decay").press("Enter")
            section.shows(ema_decay="0.9995")
