"""What is said about a preset under the GUI's list of presets, on a small gradio; and that list in order."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.about import MANIFEST
from kohya_ext.runtime import gui, preset_notes
from kohya_ext.spec.flags import SECTION
from kohya_ext.spec.measurements import FILE_NAME
from kohya_ext.spec.preset_files import ABOUT, MEASURED_AS
from tests.runtime import little_gradio
from tests.runtime.little_gradio import Context, NewEvents, OldEvents

ABOUT_A = {
    "title": "A <b>",
    "origin": "the guide",
    "vram": {"tier_gb": 48, "estimate": "1 GB + 2 GB"},
    "fill_in": ["Image folder", "Output"],
    "base_model": "someone/sdxl",
    "requires": ["AdaCoor", "more"],
    "warnings": ["Learning rate 1 belongs to AdaCoor."],
    "notes": ["first", "second"],
    "extract": "extract a LoRA",
    "extract_command": "kohya-ext lora extract",
}
FILES: dict[str, dict[str, Any]] = {
    "theirs 10": {},
    "theirs 9": {},
    "user_presets/mine": {},
    "user_presets/A-80GB": {ABOUT: {"vram": {"tier_gb": 80}}},
    "user_presets/B-48GB": {ABOUT: ABOUT_A, "optimizer": "Lion"},
    "user_presets/C-48GB": {ABOUT: ABOUT_A, "optimizer": "AdaCoor"},
}
ORDER = [
    "user_presets/C-48GB",
    "user_presets/B-48GB",
    "user_presets/A-80GB",
    "user_presets/mine",
    "theirs 9",
    "theirs 10",
]


@pytest.fixture(params=[OldEvents, NewEvents])
def gradio(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made, context = little_gradio.module(request.param)
    monkeypatch.setitem(sys.modules, "gradio", made)
    monkeypatch.setitem(sys.modules, "gradio.context", context)
    return made


class Advanced:
    """As Kohya's: makes the field for additional flags where it is called."""

    def __init__(self) -> None:
        self.additional_parameters = sys.modules["gradio"].Textbox(label="Additional parameters")


@pytest.fixture
def hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class like Kohya's in a checkout with these presets."""
    name = "kohya_gui.class_advanced_training"
    module = types.ModuleType(name)
    module.__file__ = str(tmp_path / "kohya_gui" / "class_advanced_training.py")
    monkeypatch.setitem(sys.modules, name, module)
    made = type("AdvancedTraining", (), {**vars(Advanced), "__module__": name})
    gui.offer_ours({"__name__": name, "AdvancedTraining": made})
    for file, values in FILES.items():
        path = tmp_path / "presets" / "lora" / f"{file}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    (tmp_path / "presets" / "finetune").mkdir()
    (tmp_path / "presets" / "finetune" / "theirs 9.json").write_text("{}")
    return made


def page(gradio: Any, made: Any, choices: list[Any], label: str = "Presets") -> tuple[Any, Any]:
    with gradio.Blocks() as root, gradio.Tab(label="Training"):
        gradio.Row(label="first")
        listed = gradio.Dropdown(label=label, choices=choices)
        with gradio.Accordion(label="Basic"), gradio.Row(label="inside"):
            gradio.Row(label="deep")
        with gradio.Accordion(label="Advanced"):
            made()
        gradio.Row(label="last")
    return root, listed


def texts(root: Any) -> dict[str, str]:
    """What the browser shows for each preset."""
    script = next(js for block, _, _, _, _, js, _ in root.fns.values() if block.label == "Presets")
    found: dict[str, str] = dict(json.loads(script[script.index("[[") : script.rindex("]]") + 2]))
    return found


@pytest.mark.parametrize("labelled", [False, True])
def test_the_list_is_in_order(gradio: Any, hooked: Any, labelled: bool) -> None:
    names = ["none", *FILES]
    root, listed = page(gradio, hooked, [(one, one) for one in names] if labelled else names)
    assert [one[-1] if labelled else one for one in listed.choices] == ["none", *ORDER]
    assert set(texts(root)) == {name for name in FILES if ABOUT in FILES[name]}


def test_the_note_is_under_the_list(gradio: Any, hooked: Any) -> None:
    root, listed = page(gradio, hooked, list(FILES))
    labels = [(type(child).__name__, child.label) for child in root.children[0].children]
    assert labels == [
        ("Row", "first"),
        ("Dropdown", "Presets"),
        ("HTML", None),
        ("Accordion", "Basic"),
        ("Accordion", "Advanced"),
        ("Accordion", SECTION),
        ("Row", "last"),
    ]
    events = [event for event in root.fns.values() if event[0] is listed]
    assert [(name, fn, inputs) for _, name, fn, inputs, *_ in events] == [("change", None, [listed])]


def test_all_of_it_is_said_and_nothing_is_markup(gradio: Any, hooked: Any) -> None:
    root, _ = page(gradio, hooked, list(FILES))
    said = texts(root)["user_presets/B-48GB"]
    assert "<b>A &lt;b&gt;</b> (the guide)" in said
    for words in (
        "<b>Warning:</b> Learning rate 1 belongs to AdaCoor.",
        "for a card with 48 GB",
        "1 GB + 2 GB",
        "Image folder, Output",
        "someone/sdxl, downloaded at the first training",
        "AdaCoor, the optimizer of kohya_ext, more",
        "<li>first</li><li>second</li>",
        "extract a LoRA<br><code>kohya-ext lora extract</code>",
    ):
        assert words in said


def test_what_runs_have_measured_here(gradio: Any, hooked: Any, tmp_path: Path) -> None:
    """Of a run with the settings of the preset, and only under that preset."""
    file = tmp_path / "presets" / "lora" / "user_presets" / "A-80GB.json"
    file.write_text(json.dumps({ABOUT: {"title": "A", MEASURED_AS: "a1"}}))
    line = {"settings": "a1", "device": "<b>A100", "peak_reserved_bytes": 17 << 30, "seconds_per_step": 1.9,
            "out_of_memory": False, "date": "2026-11-27"}  # fmt: skip
    records = (tmp_path / MANIFEST).parent
    records.mkdir()
    (records / FILE_NAME).write_text(f"{json.dumps(line)}\n{{\n")
    said = texts(page(gradio, hooked, list(FILES))[0])
    here = "<p><b>Measured here:</b> 17.0 GiB reserved, 1.9 s a step on &lt;b&gt;A100, 2026-11-27</p>"
    assert here in said["user_presets/A-80GB"]
    assert "Measured here" not in said["user_presets/B-48GB"]


@pytest.mark.parametrize("odd", [None, 1, [], [1, None], {"a": 1}, "text", True])
def test_whatever_a_file_says(odd: Any) -> None:
    assert isinstance(preset_notes.explained(dict.fromkeys(ABOUT_A, odd)), str)
    assert isinstance(preset_notes.explained({"vram": {"tier_gb": odd, "estimate": odd}}), str)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"_about": 3}', "\xff", "[" * 100_000])
def test_a_file_that_is_no_preset_says_nothing(gradio: Any, hooked: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "presets" / "lora" / "theirs 9.json").write_bytes(text.encode("latin-1"))
    root, listed = page(gradio, hooked, list(FILES))
    assert listed.choices == ORDER
    assert "theirs 9" not in texts(root)


def test_a_tab_without_presets_gets_no_note(gradio: Any, hooked: Any) -> None:
    root, listed = page(gradio, hooked, ["b", "a"], label="Others")
    assert listed.choices == ["b", "a"]
    assert "HTML" not in [type(child).__name__ for child in root.children[0].children]


def test_without_the_folder_the_list_is_sorted_all_the_same(gradio: Any, hooked: Any, tmp_path: Path) -> None:
    (tmp_path / "presets").rename(tmp_path / "elsewhere")
    _, listed = page(gradio, hooked, ["b", "none", "a"])
    assert listed.choices == ["none", "a", "b"]


@pytest.mark.parametrize("broken", ["HTML.__init__", "Dropdown.change"])
def test_where_it_fails_the_list_is_as_kohya_made_it(
    gradio: Any, hooked: Any, broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    component, _, name = broken.partition(".")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(getattr(gradio, component), name, fail)
    root, listed = page(gradio, hooked, list(FILES))
    assert listed.choices == list(FILES)
    assert [event for event in root.fns.values() if event[0] is listed] == []
    assert "HTML" not in [type(child).__name__ for child in root.children[0].children]
    assert Context.block is None
    assert "Kohya continues as if kohya_ext were not installed" in capsys.readouterr().out
