"""A fitted preset has no warm-up at which the release's training would stop, and keeps every other one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kohya_ext.presets.check import check
from kohya_ext.presets.document import Preset
from kohya_ext.presets.fit import Fitted, fit
from kohya_ext.presets.flat_file import to_file
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Field
from kohya_ext.presets.warm_up import drop_refused_warm_up
from kohya_ext.pysource.arguments import arguments_of
from kohya_ext.pysource.sources import TextSources
from tests.presets.test_start import COMMON, COMPLETE, LIST_TAB, NETWORK, SCHEMA, SCRIPT, SHELL

PASSED = """    if lr_warmup:
        run_cmd += f" --lr_warmup_steps={lr_warmup}"
"""
DROPPED = PASSED.replace("if lr_warmup:", "if lr_warmup and lr_scheduler != 'constant':")
REFUSING = 'raise ValueError(f"{name} does not require `num_warmup_steps`.")'
HANDLER = "def lr_scheduler_changed(scheduler, value):\n    pass\n"
RELATIVE = {"lr_warmup": 10, "lr_scheduler": "cosine", "optimizer": "Adafactor"}
CHOICES = ("constant", "cosine", "constant_with_warmup")


def release(passes: str = PASSED, trainer: str = REFUSING) -> Release:
    tab = LIST_TAB.replace(", LoRA_type", ", lr_warmup, LoRA_type")
    tab = tab.replace('    if LoRA_type == "Standard"', f'{passes}    if LoRA_type == "Standard"')
    network = NETWORK.replace(
        "    return parser", '    parser.add_argument("--lr_warmup_steps", type=int)\n    return parser'
    )
    files = {"sdxl_train_network.py": SCRIPT, "train_network.py": network, "library/train_util.py": trainer}
    gui = {
        "kohya_gui/lora_gui.py": tab,
        "kohya_gui/common_gui.py": COMMON,
        "kohya_gui/class_basic_training.py": HANDLER,
    }
    fields = {
        "lr_warmup": Field("lr_warmup", "Slider", minimum=0, maximum=100, step=1, default=10),
        "lr_scheduler": replace(SCHEMA.fields["lr_scheduler"], choices=CHOICES),
    }
    training = TextSources(files)
    return replace(
        SHELL, gradio=4, training=training, gui=TextSources(gui),
        arguments=arguments_of(training, "sdxl_train_network.py"),
        schema=replace(SCHEMA, fields={**SCHEMA.fields, **fields}),
    )  # fmt: skip


def fitted(changes: dict[str, Any], one: Release) -> Fitted:
    values = {key: value for key, value in {**COMPLETE, **changes}.items() if value is not ...}
    found = fit(Preset("mine", "lora", values), one.schema)
    drop_refused_warm_up(found, one)
    return found


@pytest.mark.parametrize(
    ("changes", "one", "kept"),
    [
        ({"lr_warmup": 10, "lr_scheduler": "constant"}, release(), 0),
        ({"lr_warmup": ..., "lr_scheduler": "constant"}, release(), 0),  # the field's own default
        ({"lr_warmup": 10, "lr_scheduler": "constant"}, release(DROPPED), 10),
        ({"lr_warmup": 10, "lr_scheduler": "constant"}, release(trainer=""), 10),
        ({"lr_warmup": 10, "lr_scheduler": "cosine"}, release(), 10),
        ({"lr_warmup": 10, "lr_scheduler": "constant_with_warmup"}, release(), 10),
        (RELATIVE, release(), 0),
        (
            {
                "lr_warmup": 10,
                "lr_scheduler": "cosine",
                "optimizer": "Adafactor",
                "optimizer_args": "relative_step=False",
            },
            release(),
            10,
        ),
        ({"lr_warmup": 0, "lr_scheduler": "constant"}, release(), 0),
        ({"lr_warmup": 10, "lr_scheduler": "constant", "LoRA_type": "Refused"}, release(), 10),  # nothing starts
    ],
)
def test_the_warm_up_goes_only_where_training_stops_at_it(changes: dict[str, Any], one: Release, kept: int) -> None:
    found = fitted(changes, one)
    assert found.values["lr_warmup"] == kept
    steps = [step for step in found.steps if step.key == "lr_warmup" and step.action == "changed"]
    assert [(step.before, step.after) for step in steps] == ([] if kept or changes["lr_warmup"] == 0 else [(10, 0)])
    wrong = {(one.rule, one.key) for one in check(Preset("mine", "lora", found.values), one)}
    assert ("scheduler", "lr_warmup") not in wrong


def test_check_says_what_the_gui_does_about_it() -> None:
    values = {**COMPLETE, "lr_warmup": 10}
    (found,) = [one for one in check(Preset("mine", "lora", values), release()) if one.rule == "scheduler"]
    assert (found.level, found.key) == ("error", "lr_warmup") and "the GUI sets it to 0 only where" in found.effect
    assert not [one for one in check(Preset("mine", "lora", values), release(DROPPED)) if one.rule == "scheduler"]


def test_a_toml_file_has_no_warm_up_at_which_training_stops() -> None:
    for scheduler, share in (("constant", None), ("cosine", 0.1)):
        values = {**COMPLETE, "lr_warmup": 10, "lr_scheduler": scheduler}
        content, steps = to_file(Preset("mine", "lora", values), release())
        assert content.get("lr_warmup_steps") == share
        assert ("lr_warmup" in [step.key for step in steps.steps]) is (share is None)
