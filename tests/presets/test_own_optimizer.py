"""AdaCoor's arguments in settings: what its constructor refuses is found before a run, and nothing else."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.findings import Finding
from kohya_ext.presets.script_config import config_findings
from kohya_ext.pysource.sources import TextSources
from kohya_ext.spec import adacoor
from tests.presets.test_toml import document
from tests.presets.toml_release import RELEASE, SHARED, TEXTS

SCRIPT = "sdxl_train.py"
EMBEDDINGS = ("train_textual_inversion.py", "sdxl_train_textual_inversion.py")
LORA = "sdxl_train_network.py"
WRONG = [
    ['"auto_rl=True"'],
    ['"auto_lr=True"', '"d_coef=1"', '"decouple=True"'],
    ["\"auto_lr='True'\""],
    ['"auto_lr=1"'],
    ['"momentum=1"'],
    ['"momentum=-0.1"'],
    ["\"momentum='0.9'\""],
    ['"eps=0"'],
    ['"eps=1e-300"'],
    ['"eps=1e300"'],
    ['"weight_decay=-1"'],
    [f'"vt_rate=1{"0" * 400}"'],
    ['"state_bits=4"'],
    ['"seed=1.5"'],
    ['"maximize=0"'],
    ['"fused=1"'],
    ['"foreach=True"', '"fused=True"'],
    ['"state_bits=32"', '"stochastic_state=True"'],
    ['"lr=1"'],
    ['"auto_lr=True"', '"auto_lr=None"'],
]
RIGHT = [
    ['"auto_lr=True"', '"momentum=0.9"'],
    ['"eps=1e-8"', '"weight_decay=0.1"', '"vt_rate=1"', '"seed=3"', '"state_bits=8"'],
    ['"foreach=None"', '"fused=True"', '"stochastic_weights=False"', '"maximize=True"'],
    ['"auto_lr=None"', '"auto_lr=True"'],
]


def found(
    words: list[str], tmp_path: Path, more: str = "", patched: bool = True, script: str = SCRIPT
) -> list[Finding]:
    text = f"""
pretrained_model_name_or_path = "m.safetensors"
train_data_dir = "img"
resolution = "1024,1024"
caption_extension = ".txt"
optimizer_type = "AdaCoor"
optimizer_args = [{", ".join(words)}]
learning_rate = 1.0
{more}
"""
    texts = {**TEXTS, "library/shared.py": SHARED + MORE, **dict.fromkeys([*EMBEDDINGS, LORA], TEXTS["sdxl_train.py"])}
    release = replace(RELEASE, patched=patched, training=TextSources(texts))
    return config_findings(document(text, tmp_path), script, release)


MORE = """
    parser.add_argument("--deepspeed", action="store_true")
    parser.add_argument("--lr_scheduler_type", type=str, default="")
    parser.add_argument("--lr_scheduler_args", type=str, default=None, nargs="*")
"""


def read(words: list[str]) -> dict[str, Any]:
    pairs = (str(ast.literal_eval(word)).partition("=") for word in words)
    return {name: ast.literal_eval(value) for name, _, value in pairs}


@pytest.mark.parametrize("words", WRONG, ids=str)
def test_what_stops_the_run_is_an_error(words: list[str], tmp_path: Path) -> None:
    errors = [one for one in found(words, tmp_path) if one.level == "error"]
    assert {(one.rule, one.key) for one in errors} == {("optimizer-args", "optimizer_args")}
    assert all("stops: AdaCoor: " in one.effect and one.fix for one in errors)


@pytest.mark.parametrize("words", RIGHT, ids=str)
def test_what_it_takes_is_not_mentioned(words: list[str], tmp_path: Path) -> None:
    assert found(words, tmp_path) == []


@pytest.mark.parametrize("words", [*WRONG, *RIGHT], ids=str)
def test_the_constructor_says_the_same(words: list[str]) -> None:
    torch = pytest.importorskip("torch")
    from kohya_ext.optim import AdaCoor

    refused = False
    try:
        AdaCoor([torch.nn.Parameter(torch.zeros(1))], 1.0, **read(words))
    except (TypeError, ValueError):
        refused = True
    assert refused == (words in WRONG)


def test_the_table_is_the_constructors() -> None:
    pytest.importorskip("torch")
    from kohya_ext.optim import AdaCoor

    parameters = list(inspect.signature(AdaCoor).parameters.values())[1:]
    assert {one.name: one.default for one in parameters} == adacoor.DEFAULTS
    assert {*adacoor.NUMBERS, *adacoor.SWITCHES, *adacoor.CHOICES, "state_bits", "seed"} == set(adacoor.DEFAULTS)


def test_auto_lr_with_deepspeed_is_found(tmp_path: Path) -> None:
    [error] = found(['"auto_lr=True"'], tmp_path, "deepspeed = true")
    assert "DeepSpeed" in error.effect and error.level == "error"
    assert found(['"auto_lr=True"', '"auto_lr=False"'], tmp_path, "deepspeed = true") == []


@pytest.mark.parametrize("script", EMBEDDINGS)
def test_auto_lr_of_textual_inversion_is_found(script: str, tmp_path: Path) -> None:
    """A few rows of a large tensor move: the distance stays at the first guess."""
    [warning] = found(['"auto_lr=True"', '"momentum=0.9"'], tmp_path, script=script)
    assert (warning.level, warning.rule, warning.key) == ("warning", "optimizer-args", "optimizer_args")
    assert "first guess" in warning.effect and "presets rate" in warning.fix
    assert found(['"auto_lr=False"'], tmp_path, script=script) == []


@pytest.mark.parametrize(
    "eps, script, level",
    [
        ("1e-12", SCRIPT, None),
        ("9e-7", SCRIPT, None),
        ("1e-6", SCRIPT, "warning"),
        ("1", SCRIPT, "warning"),
        ("1e-6", LORA, None),
        ("9e-5", LORA, None),
        ("1e-4", LORA, "warning"),
    ],
)
def test_a_first_guess_as_large_as_a_rate_that_destroys_is_found(
    eps: str, script: str, level: str | None, tmp_path: Path
) -> None:
    """A model itself is destroyed by shorter steps than a LoRA."""
    levels = [one.level for one in found(['"auto_lr=True"', f'"eps={eps}"'], tmp_path, script=script)]
    assert levels == ([] if level is None else [level])
    if level is not None:
        [warning] = found(['"auto_lr=True"', f'"eps={eps}"'], tmp_path, script=script)
        assert f"by up to {float(eps) ** 0.5:.2g}" in warning.effect and "eps=1e-8" in warning.fix


@pytest.mark.parametrize("name", ["OneCycleLR", "torch.optim.lr_scheduler.CyclicLR"])
def test_a_scheduler_that_wants_momentum_is_found(name: str, tmp_path: Path) -> None:
    chosen = f'lr_scheduler_type = "{name}"'
    [error] = found(['"auto_lr=True"'], tmp_path, chosen)
    assert (error.level, error.rule, error.key) == ("error", "scheduler", "lr_scheduler_type")
    assert "cycle_momentum=False" in error.fix
    assert found(['"momentum=0.9"'], tmp_path, chosen) == []
    assert found([], tmp_path, f'{chosen}\nlr_scheduler_args = ["cycle_momentum=False"]') == []
    assert found([], tmp_path, 'lr_scheduler_type = "CosineAnnealingLR"') == []


@pytest.mark.parametrize("last", [True, False])
def test_the_last_of_several_counts(last: bool, tmp_path: Path) -> None:
    words = [f'"auto_lr={not last}"', f'"auto_lr={last}"', '"eps=0"', '"eps=1e-8"']
    [finding] = found(words, tmp_path, "learning_rate_te1 = 3.0")
    assert ("finds its rate" in finding.effect) == last
    assert finding.rule == "adacoor-rate"


def test_a_checkout_without_it_judges_it_as_what_it_is(tmp_path: Path) -> None:
    """Not as the default, AdamW, which has no auto_lr and would be ruined by a rate of 1."""
    assert [one.rule for one in found(['"auto_lr=True"'], tmp_path, patched=False)] == ["not-installed"]
    rules = [one.rule for one in found(['"auto_rl=True"'], tmp_path, patched=False)]
    assert sorted(rules) == ["not-installed", "optimizer-args"]
