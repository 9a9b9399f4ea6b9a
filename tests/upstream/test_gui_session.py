"""A session in the real GUI: whatever a user does to the section of the EMA, the printed command has what it shows.

And whoever does not touch it saves the same bytes as in a GUI without us.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.document import Preset, bundled
from kohya_ext.presets.schema import Tab
from kohya_ext.spec.flags import ENABLE_EMA, FLAGS
from tests.upstream import real_gui
from tests.upstream.gui_page import TabPage
from tests.upstream.gui_section import TEXT, Section
from tests.upstream.gui_workshop import UPSTREAMS_OWN, Workshop, fill_in, opened, print_command
from tests.upstream.real_gui import ERAS
from tests.upstream.test_presets_command import unstamped

pytestmark = pytest.mark.upstream

FIELDS = [flag for flag in FLAGS if flag.label]
TYPED = "--ema_decay 0.25 --ema_sample=both --log_prefix mine --enable_ema"


class Session:
    """One tab, its section, and a look at both after each thing that the user does."""

    def __init__(self, tab: TabPage, workshop: Workshop, images: str) -> None:
        self.tab, self.workshop, self.images = tab, workshop, images
        self.section = Section(tab.page, tab.config, workshop.tab)
        self.looks = 0

    def agrees(self, done: str) -> dict[str, Any]:
        """What the fields show, after the printed command was seen to have exactly that."""
        printed = print_command(self.tab, self.workshop)
        shown = self.shown()
        assert ours_in(printed) == shown, (done, printed)
        assert self.tab.complaints() == [], done
        self.looks += 1
        if folder := os.environ.get("KOHYA_GUI_IMAGES"):
            self.section.box(ENABLE_EMA.label).scroll_into_view_if_needed()
            self.tab.page.screenshot(path=str(Path(folder) / f"{self.images}-{self.looks}-{done}.png"))
        return shown

    def shown(self) -> dict[str, Any]:
        """Key -> value, of our fields."""
        values = {flag: self.section.value(flag.label) for flag in FIELDS}
        return {flag.key: flag.read({} if value == "" else {flag.key: value}) for flag, value in values.items()}


def ours_in(printed: str) -> dict[str, Any]:
    """Key -> value, of the flags that have fields, as a training script reads the command."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in FLAGS:
        parser.add_argument(flag.name, **flag.settings)
    found = vars(parser.parse_known_args(shlex.split(printed))[0])
    return {flag.key: flag.read(found) for flag in FIELDS}


def with_an_ema() -> Preset:
    """A bundled preset that has flags of the EMA in its additional parameters."""
    found = (one for one in bundled() if ENABLE_EMA.name in str(one.values["additional_parameters"]))
    return next(one for one in found if one.tab == "finetune")


@pytest.mark.parametrize("name", ERAS)
def test_the_printed_command_has_what_the_fields_show(name: str, tmp_path: Path) -> None:
    era = ERAS[name]
    real_gui.require(era)
    workshop = Workshop(era, tmp_path)
    saved, preset = tmp_path / "mine.json", with_an_ema()
    with opened(workshop, tmp_path) as tab:
        tab.choose(UPSTREAMS_OWN[workshop.tab])  # what a fresh form holds does not start in every release
        fill_in(tab, workshop)
        session = Session(tab, workshop, name)
        section = session.section
        defaults = {flag.key: flag.default for flag in FIELDS}
        assert session.agrees("untouched") == defaults
        section.field("Enable EMA").check()
        section.type("EMA decay", "0.99912345")
        section.pick("EMA device", "cpu")
        edited = {"enable_ema": True, "ema_decay": 0.99912345, "ema_device": "cpu"}
        section.shows(text="--enable_ema --ema_decay=0.99912345 --ema_device=cpu")
        assert session.agrees("edited") == defaults | edited
        tab.choose(f"user_presets/{preset.name}")
        section.shows(text=preset.values["additional_parameters"], enable_ema=True, ema_decay="0.9995")
        fill_in(tab, workshop)
        section.reveal()
        assert session.agrees("preset") == defaults | ours_in(str(preset.values["additional_parameters"]))
        section.type(TEXT, TYPED)
        typed = defaults | {"ema_decay": 0.25, "ema_sample": "both", "enable_ema": True}
        section.shows(text=TYPED, ema_decay="0.25", ema_sample="both")
        assert session.agrees("typed") == typed
        tab.configuration(saved, "save")
        tab.until(saved.exists, "nothing was saved")
        assert json.loads(saved.read_text("utf-8"))["additional_parameters"] == TYPED
        section.field("Enable EMA").uncheck()
        section.pick("Sample from", "raw")
        section.shows(text="--ema_decay 0.25 --log_prefix mine")
        assert session.agrees("changed") == defaults | {"ema_decay": 0.25}
        tab.configuration(saved, "load")
        section.shows(text=TYPED, enable_ema=True, ema_sample="both")
        assert session.agrees("loaded") == typed
        Section(tab.page, tab.config, "lora").shows(text="", enable_ema=False, ema_decay="0.9995", ema_sample="raw")
        session.section = Section(tab.page, tab.config, "finetune")
        assert session.agrees("back") == typed


@pytest.mark.parametrize("where", ["finetune", "lora"])
@pytest.mark.parametrize("name", ERAS)
def test_what_is_saved_is_what_a_gui_without_us_saves(name: str, where: Tab, tmp_path: Path) -> None:
    era = ERAS[name]
    real_gui.require(era)
    workshop = Workshop(era, tmp_path, where, plain=True)
    without = kept(workshop, tmp_path)
    real_gui.install_into(workshop.tree, real_gui.python_of(era))
    ours = kept(workshop, tmp_path)
    assert b'"additional_parameters"' in without[0]
    assert ours == without


def kept(workshop: Workshop, folder: Path) -> tuple[bytes, str, list[bytes]]:
    """What remains of one visit, our fields untouched: a saved configuration, the printed command, the TOML files."""
    saved = folder / "saved.json"
    saved.unlink(missing_ok=True)
    with opened(workshop, folder) as tab:
        tab.choose(UPSTREAMS_OWN[workshop.tab])
        fill_in(tab, workshop)
        printed = print_command(tab, workshop)
        tab.configuration(saved, "save")
        tab.until(saved.exists, "nothing was saved")
        assert tab.complaints() == []
    written = sorted(workshop.output.glob("*.toml"))
    files = [path.read_bytes() for path in written]
    for path in written:
        path.unlink()
    return saved.read_bytes(), str(unstamped(printed)), files
