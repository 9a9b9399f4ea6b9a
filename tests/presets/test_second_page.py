"""What the second GUI makes of a file of settings, read from its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Schema
from kohya_ext.presets.second_page import (
    opened,
    run_settings,
    second_command,
    second_findings,
    second_table,
    tab_of_script,
)
from kohya_ext.presets.second_table import Table, read_table
from kohya_ext.pysource.sources import FolderSources, TextSources
from tests.presets import second_guis

SDXL = "sdxl_train.py"
SOURCES = TextSources({**second_guis.FIRST, **second_guis.SECOND})


def table(**changed: str) -> Table:
    texts = {**second_guis.FIRST, **second_guis.SECOND, **changed}
    found = read_table(TextSources(texts), "finetune", patched=True)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    checkout = second_guis.write(tmp_path_factory.mktemp("both") / "kohya_ss")
    training, gui = FolderSources(checkout.training_root), FolderSources(checkout.root)
    return Release("v0", Schema("lora", "", {}, presets_list=False), patched=True, training=training, gui=gui)


def test_the_table_has_every_field_as_the_source_says() -> None:
    rows = table().rows
    assert rows["optimizer_type"].field.choices == ("", "AdamW", "AdamW8bit", "Lion", "AdaCoor")
    assert rows["optimizer_type"].field.custom
    assert (rows["learning_rate"].field.component, rows["learning_rate"].field.default) == ("Number", 2e-6)
    assert rows["learning_rate_te"].families == ("base",)
    assert rows["num_processes"].gui_only
    assert rows["architecture"].field.choices == ("base", "sdxl")
    assert table().scripts == {"base": "fine_tune.py", "sdxl": SDXL}
    assert (table().family, table().family_of(SDXL)) == ("base", "sdxl")


def test_unpatched_it_offers_its_own_optimizers_only() -> None:
    found = read_table(SOURCES, "finetune")
    assert found is not None
    assert "AdaCoor" not in (found.rows["optimizer_type"].field.choices or ())


def test_no_table_without_such_a_gui_or_tab() -> None:
    assert read_table(TextSources(second_guis.FIRST), "finetune") is None
    assert read_table(SOURCES, "lora") is None
    broken = {**second_guis.SECOND, "kohya_gui_v2/tabs/finetune_tab.py": "ARCHITECTURE_SCRIPTS = ("}
    assert read_table(TextSources(broken), "finetune") is None


def test_a_training_gets_what_the_fields_and_the_derivation_give() -> None:
    page = opened({"learning_rate": 0.5, "optimizer_args": ["a=1", "b=2"], "seed": 0, "no_half_vae": True,
                   "learning_rate_te": 0.25}, table(), SDXL)  # fmt: skip
    assert page.family == "sdxl"
    assert page.values["optimizer_args"] == "a=1 b=2"
    trained = run_settings(page)
    assert trained["optimizer_args"] == ["a=1", "b=2"]
    assert trained["learning_rate"] == 0.5
    assert trained["max_train_epochs"] == 0  # of this tab numbers stay, others drop them
    assert trained.keys().isdisjoint({"seed", "no_half_vae", "learning_rate_te", "num_processes", "architecture"})
    assert run_settings(opened({"learning_rate_te": 0.25}, table(), "fine_tune.py"))["learning_rate_te"] == 0.25


def test_boxes_hold_switches_and_text_fields_texts() -> None:
    page = opened({"no_half_vae": 0, "xformers": 1, "resolution": 768}, table(), SDXL)
    assert (page.values["no_half_vae"], page.values["xformers"], page.values["resolution"]) == (False, True, "768")
    assert page.replaced == {}
    assert "no_half_vae" not in run_settings(page)


def test_a_list_shows_its_default_instead_of_what_it_does_not_offer() -> None:
    page = opened({"optimizer_type": "Sophia", "mixed_precision": "fp16"}, table(), SDXL)
    assert page.values["optimizer_type"] == ""
    assert page.replaced == {"optimizer_type": "Sophia"}


def test_with_an_ema_its_decay_is_on_the_command_line_too() -> None:
    page = opened(
        {"enable_ema": True, "output_dir": "/out", "num_processes": 2, "mixed_precision": "bf16"}, table(), SDXL
    )
    result = second_command(page, SOURCES, "STAMP")
    path = "/out/config_finetune_v2-STAMP.toml"
    assert result.training == [
        *("uv", "run", "accelerate", "launch", "--mixed_precision", "bf16", "--num_processes", "2"),
        *(f"sd-scripts/{SDXL}", "--ema_decay", "0.9995", "--config_file", path),
    ]
    assert result.toml[path]["enable_ema"] is True
    assert result.toml[path]["ema_decay"] == 0.9995
    without = second_command(opened({"output_dir": "/out"}, table(), SDXL), SOURCES, "STAMP")
    assert "--ema_decay" not in without.training  # type: ignore[operator]
    assert not {key for key in without.toml[path] if "ema" in key}


@pytest.mark.parametrize(
    ("settings", "rule", "says"),
    [
        ({"no_half_vae": True}, "second-gui-loses", "derives it from a field that it does not have"),
        ({"max_grad_norm": 0.5}, "second-gui-loses", "has no field for it"),
        ({"optimizer_type": "Sophia"}, "not-offered", "shows '' in its place"),
    ],
    ids=["derived", "no-field", "not-offered"],
)
def test_what_it_loses_is_said(settings: dict[str, Any], rule: str, says: str, release: Release) -> None:
    finding, = second_findings(settings, SDXL, release)  # fmt: skip
    assert (finding.rule, finding.key) == (rule, next(iter(settings)))
    assert says in finding.effect


def test_what_it_keeps_is_not_mentioned(release: Release) -> None:
    kept = {"learning_rate": 0.5, "optimizer_type": "AdaCoor", "enable_ema": True, "seed": 7, "xformers": 1}
    assert second_findings(kept, SDXL, release) == []
    assert second_findings({"no_half_vae": False, "anything": "", "not_an_argument": 3}, SDXL, release) == []


def test_another_value_than_the_file_has_is_said(tmp_path: Path) -> None:
    derivations = second_guis.DERIVATIONS.replace("    return out", '    out["learning_rate"] = 0.125\n    return out')
    texts = {**second_guis.SECOND, "kohya_gui_v2/tabs/finetune_derivations.py": derivations}
    checkout = second_guis.write(tmp_path, second_guis.FIRST, texts, second_guis.TRAINING)
    release = Release("v0", Schema("lora", "", {}, presets_list=False), training=FolderSources(checkout.training_root),
                      gui=FolderSources(checkout.root))  # fmt: skip
    finding, = second_findings({"learning_rate": 0.5}, SDXL, release)  # fmt: skip
    assert (finding.rule, finding.level) == ("second-gui-changes", "warning")
    assert "0.125" in finding.effect


def test_code_that_only_a_running_gui_can_follow_is_refused(release: Release) -> None:
    unknown = second_guis.DERIVATIONS.replace("return out", "return ask(out)")
    page = opened({"learning_rate": 0.5}, table(**{"kohya_gui_v2/tabs/finetune_derivations.py": unknown}), SDXL)
    with pytest.raises(UnsupportedError, match="running GUI"):
        run_settings(page)
    with pytest.raises(UnsupportedError, match="no lora tab that could be followed"):
        second_table(release, "lora")


def test_the_tab_of_a_script() -> None:
    assert tab_of_script(SDXL, {}) == "finetune"
    assert tab_of_script(SDXL, {"training_type": "dreambooth"}) == "dreambooth"
    assert tab_of_script("train_db.py", {}) == "dreambooth"
    assert tab_of_script("flux_train_network.py", {}) == "lora"
    assert tab_of_script("sdxl_train_textual_inversion.py", {}) == "ti"
