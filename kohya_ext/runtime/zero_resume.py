"""A state of a run with DeepSpeed, resumed by another number of processes, which DeepSpeed by itself refuses.

A state holds what each rank has: flat tensors of weights, and the optimizer's of the same shape. We add to it of which
parameters these were made. With that each new rank copies its own elements out of the files of all old ones, and puts
the weights into the model.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kohya_ext.files.atomic import replacing
from kohya_ext.runtime.run import is_main_process, say, stop
from kohya_ext.runtime.zero import Zero

MAP_FILE = "kohya_ext_zero.json"
_STATE_FILES = "*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
# names of DeepSpeed's entries: the flat weights of ZeRO 1 and 2, and of ZeRO 3; the optimizer's state of both
_FLATS = ("single_partition_of_fp32_groups", "fp32_flat_groups")
_OPTIMIZER = ("base_optimizer_state", "optimizer_state_dict")
_LOSS_SCALER = "loss_scaler"


@dataclass(frozen=True)
class Shard:
    """What one old rank has saved. flats: its tensors of weights; states: the optimizer's entries of each of them."""

    flats: list[Tensor]
    states: list[Mapping[str, Any]]
    loss_scaler: Any


def write_map(folder: Path, zero: Zero) -> None:
    """Add to a state what it takes to divide it again. Raises OSError."""
    if is_main_process():
        made, skipped = zero.steps_made
        content = {"steps": made, "skipped": skipped, "ranks": zero.rows_of_ranks}
        with replacing(folder / MAP_FILE) as file:
            file.write(json.dumps(content).encode())


def divide_again(zero: Zero) -> None:
    """From now on the engine also loads states of another number of ranks."""
    load = zero.engine.load_checkpoint

    @functools.wraps(load)
    def load_any(load_dir: Any, *rest: Any, **named: Any) -> Any:
        file = Path(load_dir) / MAP_FILE
        if not file.is_file() or not zero.flats():
            return load(load_dir, *rest, **named)
        saved = json.loads(file.read_text(encoding="utf-8"))
        if len(saved["ranks"]) == len(zero.rows_of_ranks):
            return load(load_dir, *rest, **named)
        say(f"the state of {len(saved['ranks'])} processes is divided among {len(zero.rows_of_ranks)}")
        _restore(zero, Path(load_dir), saved)
        return str(load_dir), {}

    zero.engine.load_checkpoint = load_any


def _restore(zero: Zero, folder: Path, saved: Mapping[str, Any]) -> None:
    mine = {row.name: row for row in zero.rows}
    flats = zero.flats()
    with torch.no_grad():
        for rank, table in enumerate(saved["ranks"]):
            shard = _shard(folder, rank)
            for name, start, length, flat, offset in table:
                if name not in zero.parameters:
                    stop(f"{folder} is a state of another model: it has {name!r}")
                elements = shard.flats[flat][offset : offset + length]
                if not zero.divides_model:
                    zero.parameters[name].data.view(-1)[start : start + length].copy_(elements)
                row = mine.get(name)
                if row is None:
                    continue
                first, last = max(start, row.start), min(start + length, row.start + row.length)
                if first >= last:
                    continue
                old = slice(offset + first - start, offset + last - start)
                new = slice(row.offset + first - row.start, row.offset + last - row.start)
                flats[row.flat].data[new].copy_(shard.flats[flat][old])
                _copy_state(zero.optimizer_state(flats[row.flat]), flats[row.flat], shard, flat, old, new)
        if zero.divides_model:
            for name, working in zero.working_fragments():
                row = mine[name]
                working.copy_(flats[row.flat].data[row.offset : row.offset + row.length])
            zero.release()
    zero.continue_from(saved["steps"], saved["skipped"], shard.loss_scaler)


def _copy_state(state: dict[str, Any], own: Tensor, shard: Shard, flat: int, old: slice, new: slice) -> None:
    """Into the optimizer's entries of `own`, which are made where there are none yet."""
    numel = shard.flats[flat].numel()
    for key, value in shard.states[flat].items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            state[key] = value.clone() if isinstance(value, Tensor) else value
            continue
        mine = state.setdefault(key, torch.zeros_like(own, dtype=value.dtype, requires_grad=False))
        if value.numel() < numel or mine.numel() != own.numel() or mine.dtype != value.dtype:
            stop(
                f"the optimizer's state in this folder ({key!r}) cannot be divided among another number of processes: "
                "start as many as the run had that saved it"
            )
        mine.view(-1)[new].copy_(value.reshape(-1)[old])


def _shard(folder: Path, rank: int) -> Shard:
    found = sorted(folder.rglob(_STATE_FILES.format(rank=rank)))
    if not found:
        stop(f"{folder} is incomplete: it has nothing of process {rank} of the run that saved it")
    # like DeepSpeed, which has pickled more than tensors
    saved = torch.load(found[0], map_location="cpu", weights_only=False)["optimizer_state_dict"]
    flats = next(list(saved[key]) for key in _FLATS if key in saved)
    entries = next(saved[key] for key in _OPTIMIZER if key in saved)["state"]
    return Shard([flat.detach() for flat in flats], list(_in_order(entries, len(flats))), saved.get(_LOSS_SCALER))


def _in_order(entries: Mapping[int, Mapping[str, Any]], count: int) -> Iterator[Mapping[str, Any]]:
    for number in range(count):
        yield entries.get(number, {})
