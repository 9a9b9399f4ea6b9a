"""The configuration that PEFT reads next to a file: each module finds its own rank in it, and no other's."""

from __future__ import annotations

import json
import re

import pytest

from kohya_ext.lora.adapterconfig import Adapter, resized

WRAPPER = "base_model.model."


def rank_by_peft(patterns: dict[str, int], usual: int, module: str) -> int:
    """As PEFT documents it: each key is a regular expression for the end of a path, the first that matches counts."""
    return next((rank for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), usual)


@pytest.mark.parametrize(
    "ranks",
    [
        {"proj_out": 4, "blocks.0.proj_out": 8}, {"blocks.0.proj_out": 8, "proj_out": 4},
        {"proj_out": 4, "blocks.0.proj_out": 6, "a.blocks.0.proj_out": 8}, {"x.out": 4, "y.out": 8, "out": 2},
        {"b.c": 4, "ab.c": 8},
    ],
)  # fmt: skip
def test_a_name_that_ends_another_keeps_its_rank_to_itself(ranks: dict[str, int]) -> None:
    text = resized(
        Adapter("a", {"": {"r": 16, "lora_alpha": 4}}), {WRAPPER + name: rank for name, rank in ranks.items()}
    )
    config = json.loads(text)
    assert {name: rank_by_peft(config["rank_pattern"], config["r"], name) for name in ranks} == ranks
    again = Adapter("b", {"": config})
    assert {again.scale(WRAPPER + name, rank) for name, rank in ranks.items()} == {1.0}


def test_other_names_stay_plain_for_older_versions() -> None:
    """These know no anchor."""
    config = json.loads(resized(Adapter("a", {"": {}}), {"a.to_q": 4, "b.to_q": 8}))
    assert config["rank_pattern"] == {"a.to_q": 4}
