from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.check import check
from kohya_ext.presets.document import Preset
from kohya_ext.presets.release import Release, read_release, script_for
from kohya_ext.presets.schema import Field, Tab
from tests.presets import guis

OTHER_SCRIPT = """
def setup_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only_here", action="store_true")
    return parser
"""


@pytest.mark.parametrize(
    ("tab", "values", "script"),
    [
        ("finetune", {"sdxl_checkbox": True}, "sdxl_train.py"),
        ("finetune", {}, "fine_tune.py"),
        ("finetune", {"lumina_checkbox": True}, "lumina_train.py"),
        ("lora", {"sdxl": True, "flux1_checkbox": False}, "sdxl_train_network.py"),
        ("lora", {"flux1_checkbox": True}, "flux_train_network.py"),
        ("lora", {"v2": True}, "train_network.py"),
        ("dreambooth", {"sd3_checkbox": True}, "sd3_train.py"),
        ("ti", {"sdxl": False}, "train_textual_inversion.py"),
    ],
)
def test_the_script_of_a_form(tab: Tab, values: dict[str, Any], script: str) -> None:
    assert script_for(tab, values) == script


def test_flags_are_judged_by_the_script_that_would_run(tmp_path: Path) -> None:
    texts = {**guis.REGISTRY, "sd-scripts/fine_tune.py": OTHER_SCRIPT}
    release = read_release(guis.write(texts, tmp_path), "finetune", patched=True)
    box = {"sdxl_checkbox": Field("sdxl_checkbox", "Checkbox", default=False)}
    release = replace(release, schema=replace(release.schema, fields={**release.schema.fields, **box}))
    for sdxl, flag, expected in (
        (False, "--only_here", set()),
        (False, "--fused_backward_pass", {"unknown-flag"}),
        (True, "--only_here", {"unknown-flag"}),
    ):
        assert unknown(release, {"sdxl_checkbox": sdxl, "additional_parameters": flag}) == expected
    absent = replace(release, training=None)
    assert unknown(absent, {"sdxl_checkbox": False, "additional_parameters": "--nothing"}) == set()


def unknown(release: Release, values: dict[str, Any]) -> set[str]:
    found = check(Preset("p", "finetune", values), release)
    return {finding.rule for finding in found if finding.rule == "unknown-flag"}
