"""The EMA's section in the GUI's tabs, on a small gradio: where it stands, and that nothing of the tab changes."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from kohya_ext.core import about
from kohya_ext.runtime import ema_section, gui
from kohya_ext.spec.flags import FLAGS, SECTION
from kohya_ext.spec.hooks import ADVANCED_COMMAND
from tests.runtime import little_gradio
from tests.runtime.little_gradio import Context, NewEvents, OldEvents

FIELDS = [flag for flag in FLAGS if flag.label]


class AdvancedTraining:
    """As Kohya's: makes the field for additional flags where it is called."""

    def __init__(self, headless: bool = False, config: Any = None) -> None:
        gradio = sys.modules["gradio"]
        if config == "broken":
            raise KeyError("Kohya's own")
        with gradio.Row():
            self.additional_parameters = gradio.Textbox(label="Additional parameters")


@pytest.fixture(params=[OldEvents, NewEvents])
def gradio(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made, context = little_gradio.module(request.param)
    monkeypatch.setitem(sys.modules, "gradio", made)
    monkeypatch.setitem(sys.modules, "gradio.context", context)
    return made


@pytest.fixture
def hooked() -> type[AdvancedTraining]:
    """A class like Kohya's, wrapped as the GUI's module is loaded."""
    made = type("AdvancedTraining", (), {**vars(AdvancedTraining), "__module__": "kohya_gui.class_advanced_training"})
    namespace = {"__name__": "kohya_gui.class_advanced_training", "AdvancedTraining": made}
    gui.offer_ours(namespace)
    gui.offer_ours(namespace)
    return made


def tree(block: Any) -> Any:
    return type(block).__name__, block.label, [tree(child) for child in block.children]


def page(gradio: Any, made: Any, holder: str, **words: Any) -> Any:
    """A page whose advanced settings are in `holder`, after a row of the tab's own and before another."""
    with gradio.Blocks() as root:
        with getattr(gradio, holder)(label="Advanced"):
            gradio.Row(label="first")
            made(headless=True, **words)
            gradio.Row(label="last")
        gradio.Row(label="outside")
    return root


def test_next_to_a_closed_accordion(gradio: Any, hooked: Any) -> None:
    root = page(gradio, hooked, "Accordion")
    assert [child.label for child in root.children] == ["Advanced", SECTION, "outside"]
    assert tree(root.children[0]) == tree(page(gradio, AdvancedTraining, "Accordion").children[0])


def test_in_front_of_the_settings_in_a_tab(gradio: Any, hooked: Any) -> None:
    root = page(gradio, hooked, "Tab")
    assert [child.label for child in root.children[0].children] == ["first", SECTION, None, "last"]


def test_the_fields_are_those_of_the_flag_table(gradio: Any, hooked: Any) -> None:
    root = page(gradio, hooked, "Accordion")
    section = root.children[1]
    made = [field for row in section.children for field in row.children]
    assert [field.label for field in made] == [flag.label for flag in FIELDS]
    # an empty text: gradio 6 shows 0 for a number without a value
    assert [field.value for field in made] == ["" if flag.kind.several else flag.default for flag in FIELDS]
    assert None not in [field.value for field in made]
    for field, flag in zip(made, FIELDS, strict=True):
        assert flag.name in field.info
        assert "%%" not in field.info
        assert getattr(field, "choices", []) == list(flag.kind.choices)
    assert about.VERSION in section.children[-1].value
    assert about.REPOSITORY in section.children[-1].value


def test_only_a_persons_edit_writes_the_text(gradio: Any, hooked: Any) -> None:
    root = page(gradio, hooked, "Accordion")
    text = next(block for block in root.blocks.values() if block.label == "Additional parameters")
    for block, _, fn, inputs, outputs, js, words in root.fns.values():
        assert fn is None, "no round trip to the GUI"
        assert js
        assert words in ({"api_name": False}, {"api_visibility": "private"})
        assert (text in outputs) == (block not in (text, root))
        assert inputs[0] is text
    assert sum(block is text for block, *_ in root.fns.values()) == 1


def test_a_gradio_whose_numbers_do_not_tell_when_they_are_left(
    gradio: Any, hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gradio 4, and 5 before 5.34."""
    whole = [name for _, name, *_ in page(gradio, hooked, "Accordion").fns.values()]
    monkeypatch.setattr(gradio.Number, "blur", property())
    root = page(gradio, hooked, "Accordion")
    assert [child.label for child in root.children] == ["Advanced", SECTION, "outside"]
    assert len(root.fns) == len(whole) - sum(flag.kind.numbers is not None and not flag.kind.several for flag in FIELDS)


@pytest.mark.parametrize(
    "broken",
    [
        "Number.__init__",
        "Dropdown.__init__",
        "HTML.__init__",
        "Blocks.load",
        "Textbox.change",
        "Number.input",
        "Number.blur",
    ],
)
@pytest.mark.parametrize("holder", ["Accordion", "Tab"])
def test_where_it_fails_the_tab_is_as_kohya_made_it(
    gradio: Any,
    hooked: Any,
    broken: str,
    holder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = page(gradio, AdvancedTraining, holder)
    component, _, name = broken.partition(".")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(getattr(gradio, component), name, fail)
    root = page(gradio, hooked, holder)
    assert tree(root) == tree(plain)
    assert len(root.blocks) == len(plain.blocks)
    assert root.fns == {}
    assert Context.block is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "Kohya continues as if kohya_ext were not installed" in said


def test_an_error_of_kohyas_own_is_kohyas(gradio: Any, hooked: Any) -> None:
    with pytest.raises(KeyError, match="Kohya's own"):
        page(gradio, hooked, "Accordion", config="broken")


@pytest.mark.parametrize("broken", [None, "context"])
def test_a_gradio_that_we_do_not_know(
    gradio: Any, hooked: Any, broken: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio.context", types.ModuleType("gradio.context") if broken else None)
    with gradio.Blocks() as root:
        hooked()
    assert [type(block).__name__ for block in root.blocks.values()] == ["Row", "Textbox"]
    assert "__init__" in capsys.readouterr().out


def test_how_the_gui_makes_words_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def since_v24(run_cmd: Any = None, **_: Any) -> None: ...
    def before(**_: Any) -> None: ...

    monkeypatch.delitem(sys.modules, "kohya_gui.common_gui", raising=False)
    monkeypatch.setattr("os.name", "posix")
    for command, words in ((since_v24, "split"), (before, "posix"), (None, "posix")):
        module = types.ModuleType("common_gui")
        setattr(module, ADVANCED_COMMAND, command)
        monkeypatch.setitem(sys.modules, "library.common_gui", module)
        assert ema_section._splitting() == words
    monkeypatch.setattr("os.name", "nt")
    assert ema_section._splitting() == "windows"


def test_the_script_is_in_the_package() -> None:
    assert ema_section._script().strip().startswith("//")
