from __future__ import annotations

import pytest

from kohya_ext.presets.keys import flags_in
from kohya_ext.presets.privacy import private_findings, without_paths, without_secrets

TOKEN = "hf_" + "a1" * 17
EXTRA = "additional_parameters"


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("wandb_api_key", "anything", "secret"),
        ("wandb_api_key", "False", "neutral-key"),
        ("huggingface_token", "none ", "neutral-key"),
        ("sample_prompts", f"a cat {TOKEN}", "secret"),
        ("unknown", "0" * 40, "secret"),
        (EXTRA, "--huggingface_token x", "secret"),
        ("vae", "vae.pt", "path"),
        ("unknown", "/home/me/file", "path"),
        (EXTRA, '--a="C:\\models\\x"', "path"),
        (EXTRA, "--a=~/x", "path"),
        ("output_name", "mine", "personal"),
        ("model_list", "custom", None),
        ("block_lr", "1e-6,1e-6", None),
        ("lr_scheduler_args", "a/b", None),
        ("max_resolution", "1024,1024", None),
        ("optimizer_args", "betas=0.9,0.99", None),
    ],
)
def test_what_must_not_travel(key: str, value: str, rule: str | None) -> None:
    found = list(private_findings({key: value}))
    assert [finding.rule for finding in found] == ([rule] if rule else [])
    assert TOKEN not in str(found)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("--a=1 --wandb_api_key=x --b", "--a=1 --b"),
        ("--a=1 --wandb_api_key x --b", "--a=1 --b"),
        (f"--other {TOKEN} --b", "--b"),
        ("--a   1", "--a   1"),
        ("--wandb_api_key", ""),
    ],
)
def test_secrets_leave_a_command_line(text: str, left: str) -> None:
    assert without_secrets(EXTRA, text) == left
    assert without_secrets(EXTRA, left) == left


def test_paths_leave_a_command_line_with_their_flags() -> None:
    assert without_paths(EXTRA, "--a=/x/y --b /x/y --c 1 --d") == "--c 1 --d"
    assert without_paths("optimizer_args", "/x/y") == ""
    assert without_paths("block_lr", "1,2") == "1,2"
    assert without_secrets("metadata_title", TOKEN) == ""


def test_flags_and_their_values() -> None:
    text = '--a --b=1 --c 2 --optimizer_args x=1 "y=2" stray'
    assert flags_in(text) == {"a": True, "b": "1", "c": "2", "optimizer_args": "x=1 y=2 stray"}
    assert flags_in(None) == {}
