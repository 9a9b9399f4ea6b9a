"""The VAE of a checkpoint exchanged: every other byte stays, and what does not fit is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kohya_ext.basemodel import exchange
from kohya_ext.basemodel.exchange import PREFIX, in_checkpoint
from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.tensors.header import read_header
from tests.tensors.files import write

# (name in a checkpoint, name in diffusers, shape in a checkpoint, shape in diffusers)
WEIGHTS = [
    ("encoder.conv_in.weight", "encoder.conv_in.weight", (4, 3, 3, 3), None),
    ("encoder.down.1.block.0.norm1.weight", "encoder.down_blocks.1.resnets.0.norm1.weight", (4,), None),
    ("encoder.down.1.block.0.nin_shortcut.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias", (4,), None),
    ("encoder.down.2.downsample.conv.weight", "encoder.down_blocks.2.downsamplers.0.conv.weight", (4, 4, 3, 3), None),
    ("encoder.mid.block_1.conv1.bias", "encoder.mid_block.resnets.0.conv1.bias", (4,), None),
    ("encoder.mid.attn_1.norm.bias", "encoder.mid_block.attentions.0.group_norm.bias", (4,), None),
    ("encoder.mid.attn_1.q.weight", "encoder.mid_block.attentions.0.to_q.weight", (4, 4, 1, 1), (4, 4)),
    ("encoder.mid.attn_1.proj_out.weight", "encoder.mid_block.attentions.0.to_out.0.weight", (4, 4, 1, 1), (4, 4)),
    ("encoder.norm_out.weight", "encoder.conv_norm_out.weight", (4,), None),
    ("decoder.up.3.block.2.conv2.weight", "decoder.up_blocks.0.resnets.2.conv2.weight", (4, 4, 3, 3), None),
    ("decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight", (4, 4, 3, 3), None),
    ("decoder.mid.block_2.norm2.weight", "decoder.mid_block.resnets.1.norm2.weight", (4,), None),
    ("decoder.mid.attn_1.v.bias", "decoder.mid_block.attentions.0.value.bias", (4,), None),
    ("quant_conv.weight", "quant_conv.weight", (2, 2, 1, 1), None),
    ("post_quant_conv.bias", "post_quant_conv.bias", (2,), None),
]  # fmt: skip
METADATA = {"modelspec.title": "base", "modelspec.hash_sha256": "0xold", "sshs_model_hash": "old"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shapes = {"model.diffusion_model.a": (5, 3), **{PREFIX + name: shape for name, _, shape, _ in WEIGHTS}, "z": (7,)}
    write(tmp_path / "base.safetensors", shapes, METADATA)
    return tmp_path / "base.safetensors"


def tensors(path: Path) -> dict[str, bytes]:
    header, data = read_header(path), path.read_bytes()
    return {key: data[header.start + entry.begin : header.start + entry.end] for key, entry in header.entries.items()}


def make(kind: str, folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A VAE in one of its forms -> (what to give, the weights under their names in a checkpoint)."""
    if kind == "diffusers":
        path, given = folder / "vae" / "diffusion_pytorch_model.safetensors", folder
        shapes = {name: other or shape for _, name, shape, other in WEIGHTS}
    else:
        path = given = folder / "vae.safetensors"
        prefix = PREFIX if kind == "checkpoint" else ""
        shapes = {prefix + name: shape for name, _, shape, _ in WEIGHTS[::-1]}
        shapes["model_ema.decay" if kind == "file" else "model.diffusion_model.a"] = (1,)
    path.parent.mkdir(exist_ok=True)
    content = write(path, shapes, dtype="F32")
    return given, {in_checkpoint(key) or key: data for key, data in content.items()}


@pytest.mark.parametrize("kind", ["file", "checkpoint", "diffusers"])
def test_every_form_of_a_vae(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    given, weights = make(kind, tmp_path)
    made = exchange.plan(checkpoint, given)
    assert (made.weights, made.changed, made.dtype) == (len(WEIGHTS), len(WEIGHTS), "F32")
    exchange.write(made, tmp_path / "out.safetensors")
    before, after = tensors(checkpoint), tensors(tmp_path / "out.safetensors")
    assert list(before) == list(after)
    for key, data in after.items():
        assert data == (weights[key] if key.startswith(PREFIX) else before[key]), key
    header, old = read_header(tmp_path / "out.safetensors"), read_header(checkpoint)
    assert {key: entry.shape for key, entry in header.entries.items()} == {
        key: entry.shape for key, entry in old.entries.items()
    }
    assert header.metadata["modelspec.title"] == "base" and not {"modelspec.hash_sha256", "sshs_model_hash"} & {
        *header.metadata
    }
    assert len(header.metadata[exchange.VAE_HASH]) == 64


def test_the_way_back_gives_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    given, _ = make("file", tmp_path)
    exchange.write(exchange.plan(checkpoint, given), tmp_path / "there.safetensors")
    exchange.write(exchange.plan(tmp_path / "there.safetensors", checkpoint), tmp_path / "back.safetensors")
    assert tensors(tmp_path / "back.safetensors") == tensors(checkpoint)


def test_what_does_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    def refused(text: str, *, base: Path = checkpoint, vae: Path = tmp_path / "vae.safetensors") -> None:
        with pytest.raises(UsageError, match=text):
            exchange.plan(base, vae)

    shapes = {name: shape for name, _, shape, _ in WEIGHTS}
    write(tmp_path / "vae.safetensors", {"lora_unet_x.alpha": ()})
    refused("contains no VAE")
    write(tmp_path / "vae.safetensors", {**shapes, "quant_conv.weight": (2, 3, 1, 1)})
    refused("does not fit: first_stage_model.quant_conv.weight")
    shapes.pop("quant_conv.weight")
    write(tmp_path / "vae.safetensors", shapes)
    refused("lacks 1 of the VAE's 15 weights")
    (tmp_path / "vae.safetensors").write_bytes((tmp_path / "vae.safetensors").read_bytes()[:-3])
    refused("cut off")
    (tmp_path / "vae.ckpt").write_bytes(b"PK\3\4" + bytes(30))
    refused("pickle", vae=tmp_path / "vae.ckpt")
    refused("does not exist", vae=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused("contains no diffusion_pytorch_model", vae=tmp_path / "empty")
    write(tmp_path / "vae.safetensors", {name: shape for name, _, shape, _ in WEIGHTS})
    refused("not a full checkpoint", base=tmp_path / "vae.safetensors")


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = make("file", tmp_path)
    made = exchange.plan(checkpoint, given)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConflictError, match="no space left"):
        exchange.write(made, tmp_path / "out.safetensors")
    assert sorted(tmp_path.iterdir()) == before
