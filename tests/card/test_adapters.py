"""Every kind of adapter is called one, and a base model that the file states is never replaced by a guess."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.card.model import LORA, read
from kohya_ext.tensors.header import TensorEntry, encode

A = "lora_unet_double_blocks_0_img_attn_qkv"


def written(path: Path, keys: list[str], metadata: dict[str, str]) -> Path:
    entries = {key: TensorEntry("F32", (1,), 4 * place, 4 * place + 4) for place, key in enumerate(keys)}
    path.write_bytes(encode(entries, metadata) + bytes(4 * len(keys)))
    return path


@pytest.mark.parametrize(
    "keys",
    [
        [f"a.{part}.weight" for part in ("a1", "a2", "b1", "b2")], ["a.on_input", "a.weight"], ["a.oft_blocks"],
        ["lycoris_a.lokr_w1", "lycoris_a.lokr_w2"], ["a.to_q_lora.down.weight", "a.to_q_lora.up.weight"],
        ["unet.a.lora.down.weight", "unet.a.lora.up.weight"], ["a.diff"], ["a.hada_w1_b"],
    ],
)  # fmt: skip
def test_adapters_are_not_checkpoints(tmp_path: Path, keys: list[str]) -> None:
    assert read(written(tmp_path / "a.safetensors", keys, {})).kind == LORA


@pytest.mark.parametrize("stated", ["hunyuan-image-2.1", "flux_2_klein_9b", "flux2"])
def test_a_stated_base_model_is_not_overruled_by_names(tmp_path: Path, stated: str) -> None:
    keys = [f"{A}.lora_down.weight", f"{A}.lora_up.weight"]
    found = read(written(tmp_path / "a.safetensors", keys, {"ss_base_model_version": stated}))
    assert (found.family.name, found.base.name) == (stated, "")
    assert read(written(tmp_path / "b.safetensors", keys, {"ss_base_model_version": "flux1"})).family.name == "FLUX.1"
