"""Our presets in the real GUI, in a real browser: chosen, compared field by field, printed, trained.

Every field is compared with what the page shows of it and with what the browser sends to the GUI when a button is
clicked. Fields that are not on the page (of other model families and kinds of networks) are compared as sent alone.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import toml

from kohya_ext.presets.command import as_toml
from kohya_ext.presets.document import dump_values, find_bundled
from kohya_ext.presets.machine import MODEL, MODEL_LIST, SDXL_BASE
from kohya_ext.presets.schema import Tab
from kohya_ext.spec.flags import ENABLE_EMA
from kohya_ext.spec.preset_files import ABOUT
from tests.upstream import real_gui
from tests.upstream.gui_page import TabPage
from tests.upstream.gui_workshop import UPSTREAMS_OWN, Workshop, fill_in, opened, print_command
from tests.upstream.real_gui import ERAS

pytestmark = pytest.mark.upstream

STAMP = re.compile(r"\d{8}-\d{6}")
TRAIN = "Start training"


def equal(value: Any, shown: dict[str, Any]) -> bool:
    """Whether the page shows a preset's value."""
    if "checkbox" in shown:
        return value is shown["checkbox"]
    if "number" in shown:
        return shown["number"] != "" and math.isclose(float(shown["number"]), float(value), rel_tol=1e-12)
    return str(value) == str(next(iter(shown.values())))


@pytest.mark.parametrize("where", ["finetune", "lora"])
@pytest.mark.parametrize("name", ERAS)
def test_every_field_of_every_preset_arrives_and_the_printed_command_is_ours(
    name: str, where: Tab, tmp_path: Path
) -> None:
    era = ERAS[name]
    real_gui.require(era)
    workshop = Workshop(era, tmp_path, where)
    presets = sorted((workshop.tree / "presets" / where / "user_presets").glob("*.json"))
    assert len(presets) >= (6 if where == "finetune" else 1)
    least = 1 if where == "finetune" and era.gradio < 6 else 0.5  # of the fields, on the page
    compared: dict[str, dict[str, int]] = {}
    with opened(workshop, tmp_path) as tab:
        for path in [*presets, presets[0]]:
            if path.stem in compared:  # the first once more: after all others, and one of upstream's
                choose_upstreams_own(tab, where)
            values = json.loads(path.read_text("ascii"))
            title = values.pop(ABOUT)["title"]
            tab.choose(f"user_presets/{path.stem}")
            shown = tab.read()
            on_page = {key: shown[key] for key in values if key in shown}
            assert len(on_page) >= len(values) * least, sorted(set(values) - set(on_page))
            assert {key: one for key, one in on_page.items() if not equal(values[key], one)} == {}
            assert tab.page.get_by_text(title).filter(visible=True).count() == 1
            assert values[MODEL] == SDXL_BASE
            for key in (MODEL, MODEL_LIST):
                values.pop(key, None)
            fill_in(tab, workshop)
            printed = print_command(tab, workshop)
            assert tab.complaints() == []
            sent = tab.sent()
            unread = set(values) - set(sent) - set(on_page)
            assert unread == set()
            assert {key: sent[key] for key, value in values.items() if sent[key] != value} == {}
            check_command(workshop, path.stem, printed)
            compared[path.stem] = {"fields": len(values), "on the page": len(on_page), "unread": len(unread)}
            image(tab, name, path.stem)
        choose_upstreams_own(tab, where)
    if target := os.environ.get("KOHYA_EXT_REPORT"):
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"gui": name, "tab": where, "compared": compared}) + "\n")


def choose_upstreams_own(tab: TabPage, where: Tab) -> None:
    """Chooses a preset that ships with Kohya: nothing of ours stands in its way."""
    tab.choose(UPSTREAMS_OWN[where])
    assert tab.complaints() == []
    assert tab.read()["optimizer"] == {"text": "Adafactor"}


def check_command(workshop: Workshop, preset: str, printed: str) -> None:
    """The GUI's command and TOML file equal those of `presets command`, but for the time in the file's name."""
    done = workshop.command(preset, "--json")
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout)
    training = ours["training"] if isinstance(ours["training"], str) else " ".join(ours["training"])
    assert STAMP.sub("TIME", printed).split() == STAMP.sub("TIME", training).split()
    written = sorted(workshop.output.glob("*.toml"), key=lambda path: path.stat().st_mtime)
    assert len(written) >= len(ours["toml"])
    for settings in ours["toml"].values():
        assert toml.loads(as_toml(settings)) == toml.loads(written[-1].read_text("utf-8"))


def image(tab: TabPage, era: str, preset: str) -> None:
    """An image of the fields that matter, for people: in the folder that KOHYA_GUI_IMAGES names."""
    if folder := os.environ.get("KOHYA_GUI_IMAGES"):
        tab.box("optimizer").scroll_into_view_if_needed()
        tab.page.screenshot(path=str(Path(folder) / f"{era}-{preset}.png"))


@pytest.mark.parametrize("name", ["v26.0.0", "v22.3.1"])
def test_adacoor_trains_with_an_ema_through_the_guis_own_fields_and_button(name: str, tmp_path: Path) -> None:
    era = ERAS[name]
    real_gui.require(era)
    workshop = Workshop(era, tmp_path)
    note = workshop.witness()
    extra = str(find_bundled("AdaCoor-48GB").values["additional_parameters"])
    with opened(workshop, tmp_path) as tab:
        tab.choose("user_presets/AdaCoor-48GB")
        fill_in(tab, workshop)
        for key, value in workshop.small(extra).items():
            tab.fill(key, value)
        tab.page.get_by_label(ENABLE_EMA.label).filter(visible=True).first.check()
        tab.until(lambda: ENABLE_EMA.name in str(tab.read()["additional_parameters"]), "the flag was not written")
        tab.press(TRAIN)
        tab.until(note.exists, "training did not end", seconds=400)
        log = tab.server.printed()
        assert note.read_text().strip() == "0", log[-3000:]
        assert "AdaCoor" in log
        assert tab.complaints() == []
    for file in ("mine.safetensors", "mine-ema.safetensors"):
        assert (workshop.output / file).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["v26.0.0", "v22.3.1"])
def test_adacoor_trains_without_the_gui(name: str, tmp_path: Path) -> None:
    era = ERAS[name]
    real_gui.require(era)
    workshop = Workshop(era, tmp_path)
    preset = find_bundled("AdaCoor-48GB")
    small = {**preset.values, **workshop.small(str(preset.values["additional_parameters"]))}
    file = tmp_path / "finetune" / "small.json"
    file.parent.mkdir()
    file.write_bytes(dump_values({**small, "_about": dict(preset.about)}))
    done = workshop.command(str(file), "--run")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (workshop.output / "mine.safetensors").stat().st_size > 10_000
