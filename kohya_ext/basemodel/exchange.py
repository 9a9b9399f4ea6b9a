"""A checkpoint with another VAE in it, copied tensor by tensor: nothing is held in memory but a block of bytes.

The names of a VAE's weights are those of the original code in checkpoints, and may be those of diffusers in its file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kohya_ext.core.errors import UsageError
from kohya_ext.files.atomic import NEW_FILE_MODE, replacing
from kohya_ext.files.disk import explained_target, sha256_of
from kohya_ext.tensors.header import Header, TensorEntry, encode, is_pickle, read_header

BLOCK = 1 << 22  # bytes copied at a time
VAE_HASH = "kohya_ext_vae_sha256"
DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # they are of the old weights

Progress = Callable[[int, int], None]

PREFIX = "first_stage_model."
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
LEVELS = 4  # resolutions of the encoder and of the decoder, whose count runs the other way in diffusers

_DOWN = re.compile(r"encoder\.down_blocks\.(\d)\.(resnets|downsamplers)\.(\d)\.(.+)")
_UP = re.compile(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)")
_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip


@dataclass(frozen=True)
class VaeExchange:
    """What goes where. entries: of the new file; sources: of each key, the file's header and the entry in it.

    changed: names of VAE weights whose type in the checkpoint was another one; dtype: the type that they have now.
    """

    checkpoint: Header
    vae: Header
    entries: Mapping[str, TensorEntry]
    sources: Mapping[str, tuple[Header, TensorEntry]]
    weights: int
    changed: int
    dtype: str


def plan(checkpoint: Path, vae: Path) -> VaeExchange:
    """Match the two files. vae: a VAE file, a whole checkpoint, or a diffusers folder. Raises UsageError."""
    old, new = _opened(checkpoint), _opened(_file_of(vae))
    there = {key: entry for key, entry in old.entries.items() if key.startswith(PREFIX)}
    if not there:
        raise UsageError(f"{checkpoint} has no VAE ({PREFIX}*): it is not a full checkpoint of the original kind")
    offered: dict[str, TensorEntry] = {}
    for key, entry in new.entries.items():
        name = in_checkpoint(key)
        if name in there:
            offered[name] = entry
    _compare(checkpoint, vae, there, offered)
    entries, sources, end = {}, {}, 0
    for key, entry in old.entries.items():
        source, found = (new, offered[key]) if key in offered else (old, entry)
        size = found.end - found.begin
        entries[key] = TensorEntry(found.dtype, entry.shape, end, end + size)
        sources[key] = (source, found)
        end += size
    changed = sum(offered[key].dtype != entry.dtype for key, entry in there.items())
    dtypes = sorted({entry.dtype for entry in offered.values()})
    return VaeExchange(old, new, entries, sources, len(offered), changed, ", ".join(dtypes))


def write(made: VaeExchange, path: Path, progress: Progress = lambda *_: None) -> None:
    """Write the new checkpoint, or nothing. Raises ConflictError."""
    metadata = {key: value for key, value in made.checkpoint.metadata.items() if key not in _STALE}
    total = max(entry.end for entry in made.entries.values())
    with explained_target(path):
        metadata[VAE_HASH] = sha256_of(made.vae.path)
        with replacing(path, mode=NEW_FILE_MODE) as file, _readers(made) as readers:
            file.write(encode(made.entries, metadata))
            for key, (source, entry) in made.sources.items():
                _copy(readers[source.path], source, entry, file)
                progress(made.entries[key].end, total)


def _copy(reader: BinaryIO, source: Header, entry: TensorEntry, file: BinaryIO) -> None:
    reader.seek(source.start + entry.begin)
    left = entry.end - entry.begin
    while left:
        block = reader.read(min(BLOCK, left))
        if not block:
            raise UsageError(f"{source.path} has become shorter while it was read; nothing was written")
        file.write(block)
        left -= len(block)


@contextlib.contextmanager
def _readers(made: VaeExchange) -> Iterator[dict[Path, BinaryIO]]:
    with contextlib.ExitStack() as stack:
        yield {header.path: stack.enter_context(header.path.open("rb")) for header in (made.checkpoint, made.vae)}


def _file_of(vae: Path) -> Path:
    if not vae.is_dir():
        return vae
    for folder in (vae, vae / "vae"):
        for name in DIFFUSERS:
            if (folder / name).is_file():
                return folder / name
    raise UsageError(f"{vae} contains no {DIFFUSERS[0]}: give the file, or a diffusers folder")


def _opened(path: Path) -> Header:
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, a checkpoint file is needed here")
    if is_pickle(path):
        raise UsageError(
            f"{path} is a pickle (.ckpt), which can run code and is not opened; convert it to .safetensors"
        )
    return read_header(path)


def _compare(checkpoint: Path, vae: Path, there: Mapping[str, TensorEntry], offered: Mapping[str, TensorEntry]) -> None:
    missing = [key for key in there if key not in offered]
    if len(missing) == len(there):
        raise UsageError(f"{vae} contains no VAE that could go into {checkpoint}")
    if missing:
        raise UsageError(f"{vae} lacks {len(missing)} of the VAE's {len(there)} weights, e.g. {missing[0]}")
    for key, entry in there.items():
        # diffusers keeps 1x1 convolutions of the attention as matrices: the same numbers in the same order
        if _squeezed(entry.shape) != _squeezed(offered[key].shape):
            raise UsageError(f"{vae} does not fit: {key} has the shape {offered[key].shape}, not {entry.shape}")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def in_checkpoint(key: str) -> str | None:
    """What a checkpoint calls the weight that a file of a VAE calls `key`; None for anything else."""
    key = key.removeprefix(PREFIX)
    if not key.startswith(PARTS):
        return None
    return PREFIX + (_original(key) if "_blocks." in key or "mid_block." in key or "conv_norm_out" in key else key)


def _original(key: str) -> str:
    if match := _DOWN.fullmatch(key):
        level, kind, place, rest = match.groups()
        block = f"block.{place}" if kind == "resnets" else "downsample"
        return f"encoder.down.{level}.{block}.{_shortcut(rest)}"
    if match := _UP.fullmatch(key):
        level, kind, place, rest = match.groups()
        block = f"block.{place}" if kind == "resnets" else "upsample"
        return f"decoder.up.{LEVELS - 1 - int(level)}.{block}.{_shortcut(rest)}"
    if match := _MIDDLE.fullmatch(key):
        half, kind, place, rest = match.groups()
        if kind == "resnets":
            return f"{half}.mid.block_{int(place) + 1}.{_shortcut(rest)}"
        name, _, what = rest.rpartition(".")
        return f"{half}.mid.attn_{int(place) + 1}.{_ATTENTION.get(name, name)}.{what}"
    return key.replace("conv_norm_out", "norm_out")


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
