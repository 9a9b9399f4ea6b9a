"""What stops a training after its model has been loaded: workers, ranks, warm-ups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kohya_ext.presets.loop_faults import loop_faults
from kohya_ext.presets.rules import contradictions
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.pysource.arguments import Argument
from kohya_ext.pysource.sources import TextSources
from tests.presets.toml_release import RELEASE

SWITCHES = ("persistent_data_loader_workers", "masked_loss", "alpha_mask")
NUMBERS = {"max_data_loader_n_workers": 8, "network_dim": None, "lr_warmup_steps": 0}
TEXTS = ("lr_scheduler", "lr_scheduler_type", "optimizer_type", "dataset_config", "conditioning_data_dir")
ARGUMENTS = {
    **{name: Argument(f"--{name}", name, "bool") for name in SWITCHES},
    **{name: Argument(f"--{name}", name, "int", default=default) for name, default in NUMBERS.items()},
    **{name: Argument(f"--{name}", name) for name in TEXTS},
    "optimizer_args": Argument("--optimizer_args", "optimizer_args", nargs="*"),
}
CHECKED = TextSources({"library/train_util.py": 'raise ValueError(f"{name} does not require `num_warmup_steps`.")'})
RELATIVE = {"optimizer_type": "Adafactor", "lr_scheduler": "cosine"}


def told(given: dict[str, Any], sources: TextSources = CHECKED) -> list[tuple[str, str]]:
    return [(one.level, one.names[0]) for one in loop_faults(ScriptRun("train_network.py", given, ARGUMENTS), sources)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0}, "persistent_data_loader_workers"),
        ({"persistent_data_loader_workers": True, "max_data_loader_n_workers": 1}, ""),
        ({"persistent_data_loader_workers": True}, ""),
        ({"max_data_loader_n_workers": 0}, ""),
        ({"network_dim": 0}, "network_dim"),
        ({"network_dim": 4}, ""),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 10}, "lr_warmup"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 0.1}, "lr_warmup"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 0}, ""),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 10}, ""),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 10}, ""),
        ({"lr_scheduler": "cosine", "lr_scheduler_type": "CosineAnnealingLR", "lr_warmup_steps": 10}, "lr_warmup"),
        ({**RELATIVE, "lr_warmup_steps": 10}, "lr_warmup"),
        ({**RELATIVE, "lr_warmup_steps": 10, "optimizer_args": ["scale_parameter=False"]}, "lr_warmup"),
        ({**RELATIVE, "lr_warmup_steps": 10, "optimizer_args": ["relative_step=False"]}, ""),
        ({**RELATIVE, "lr_scheduler": "constant", "lr_warmup_steps": 0}, ""),
    ],
)
def test_what_stops(given: dict[str, Any], expected: str) -> None:
    assert told(given) == ([("error", expected)] if expected else [])


def test_a_release_that_does_not_check_the_warm_up() -> None:
    assert told({"lr_scheduler": "constant", "lr_warmup_steps": 10}, TextSources({})) == []


def test_masked_loss_needs_masks() -> None:
    assert told({"masked_loss": True}) == [("note", "masked_loss")]
    assert told({"masked_loss": True, "dataset_config": "mine.toml"}) == []
    assert told({"masked_loss": True, "alpha_mask": True}) == []


def test_what_the_gui_itself_fails_with() -> None:
    old = replace(RELEASE, gradio=3)

    def rules(**values: Any) -> set[tuple[str, str]]:
        return {(one.rule, one.key) for one in contradictions(values, old)}

    assert rules(train_batch_size=0) == {("gui-refuses", "train_batch_size")}
    assert rules(train_batch_size="1", gradient_accumulation_steps=1) == set()
    assert {(one.rule, one.key) for one in contradictions({"train_batch_size": 0}, RELEASE)} == set()
    model = "pretrained_model_name_or_path"
    assert rules(**{model: "stabilityai/stable-diffusion-xl-refiner-1.0"}) == {("training-stops", model)}
    assert rules(**{model: "refiner/sd_xl_base_1.0.safetensors"}) == set()
