"""The second GUI: AdaCoor in its list, the EMA as rows of its tables, the tab as upstream made it if that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.spec.flags import FLAGS
from tests.presets.second_guis import SECOND
from tests.runtime.test_gui import START
from tests.runtime.test_wrapping import python, write

# What of gradio the tab needs, and the place that is built in.
GRADIO = """
    class Block:
        parent = None
        def __init__(self, **words):
            self.words, self.children = words, []
            Context.block.children.append(self)
    class Textbox(Block): pass
    class Number(Block): pass
    class Checkbox(Block): pass
    class Dropdown(Block):
        def __init__(self, **words):
            if words["choices"] == FORBIDDEN:
                raise ValueError("this list cannot be shown")
            super().__init__(**words)
    FORBIDDEN = None
    from gradio.context import Context
"""
CONTEXT = """
    class Root:
        parent = None
        def __init__(self):
            self.children, self.blocks, self.fns = [], {}, {}
    class Context:
        root_block = block = Root()
"""
FILES = {
    **SECOND,
    "kohya_gui/__init__.py": START,
    "kohya_gui/class_gui_config.py": "",
    "gradio/__init__.py": GRADIO,
    "gradio/context.py": CONTEXT,
}
OPEN = """
    import gradio
    import kohya_gui.class_gui_config
    from kohya_gui_v2.tabs.finetune_tab import finetune_tab
"""
LABELLED = [flag.key for flag in FLAGS if flag.label]


def test_the_list_has_ours_and_the_tab_our_fields(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    code = f"""{OPEN}
    made, derive, words = finetune_tab()
    print(made["optimizer_type"].words["choices"])
    print([key for key in {LABELLED} if key not in made])
    print({{made[key].words["label"] for key in {LABELLED}}}, sorted(words))
    print({{key: made[key].words["value"] for key in {LABELLED} if made[key].words["value"]}})
    print(len(gradio.Context.block.children) == len(made))
    """
    assert python(tmp_path, code).splitlines() == [
        "['', 'AdaCoor', 'AdamW', 'AdamW8bit', 'Lion']",
        "[]",
        "{'EMA (kohya_ext)'} ['ema_decay']",
        "{}",
        "True",
    ]


def test_a_training_with_an_ema_has_a_decay_and_others_have_nothing_of_ours(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    code = f"""{OPEN}
    derive = finetune_tab()[1]
    print(derive({{"enable_ema": True}}, "sdxl").get("ema_decay"))
    print("ema_decay" in derive({{"enable_ema": True, "ema_decay": 0.99}}, "sdxl"))
    print([key for key in derive({{}}, "sdxl") if "ema" in key])
    """
    assert python(tmp_path, code).splitlines() == ["0.9995", "False", "[]"]


def test_a_table_of_another_kind_gets_the_optimizer_only(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    code = """
    import kohya_gui.class_gui_config
    from kohya_gui_v2.fields import FieldRegistry, FieldSpec, Widget
    one = FieldSpec(name="optimizer_type", widget=Widget.DROPDOWN, choices=["AdamW8bit"])
    kind = FieldSpec(name="training_type", widget=Widget.TEXTBOX, default="leco")
    family = FieldSpec(name="architecture", widget=Widget.TEXTBOX)
    print(FieldRegistry([one, kind, family]).names(), [spec.choices for spec in FieldRegistry([one])])
    print(FieldRegistry([FieldSpec(name="optimizer_type", widget=Widget.TEXTBOX)]).names())
    """
    assert python(tmp_path, code).splitlines() == [
        "['optimizer_type', 'training_type', 'architecture'] [['AdaCoor', 'AdamW8bit']]",
        "['optimizer_type']",
    ]


def test_a_tab_that_cannot_show_our_rows_is_as_upstream_made_it(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    code = f"""{OPEN}
    gradio.FORBIDDEN = ["", "auto", "cuda", "cpu"]
    made, derive, words = finetune_tab()
    print([key for key in made if key in {LABELLED}], words, len(gradio.Context.block.children) == len(made))
    """
    said = python(tmp_path, code).splitlines()
    assert said[-1] == "[] None True"
    assert "EMA (kohya_ext)" in said[0]
    assert "this list cannot be shown" in said[0]


@pytest.mark.parametrize("fault", ["no rows", "no names"])
def test_a_table_unlike_any_other_is_left_alone(tmp_path: Path, fault: str) -> None:
    fields = SECOND["kohya_gui_v2/fields.py"]
    if fault == "no rows":  # our rows cannot be made
        fields = fields.replace('    group: str = "general"\n', "")
    else:
        fields = fields.replace("    name: str\n", "    title: str\n")
    write(tmp_path, {**FILES, "kohya_gui_v2/fields.py": fields})
    row = "name" if fault == "no rows" else "title"
    code = f"""
    import kohya_gui.class_gui_config
    from kohya_gui_v2.fields import FieldRegistry, FieldSpec, Widget
    rows = [FieldSpec({row}=name, widget=Widget.TEXTBOX, default="finetune")
            for name in ("training_type", "architecture", "optimizer_type")]
    table = FieldRegistry(rows)
    print(table.specs == rows)
    """
    said = python(tmp_path, code).splitlines()
    assert said[-1] == "True"
    assert any("continues as if kohya_ext were not installed" in line for line in said)


def test_without_the_first_guis_package_nothing_is_hooked(tmp_path: Path) -> None:
    write(tmp_path, {**FILES, "kohya_gui/__init__.py": ""})
    code = f"""{OPEN}
    print([key for key in finetune_tab()[0] if key in {LABELLED}])
    """
    assert python(tmp_path, code) == "[]"
