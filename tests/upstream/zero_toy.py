"""Small models in DeepSpeed engines, one process of several, with our EMA: started by `test_deepspeed.py`.

Its gradients are given, the same on every rank and for any number of ranks: the loss is the sum of each weight times
its gradient. What the first rank reads after each step goes to a file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHAPES = {"a": (5, 7), "b": (3,), "c": (2, 3, 4), "d": (11,)}
FROZEN = "d"


class Term(nn.Module):
    """One parameter."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(start(name), requires_grad=name != FROZEN)

    def forward(self, gradient: Tensor) -> Tensor:
        return (self.weight * gradient.to(self.weight.dtype)).float().sum()


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({name: Term(name) for name in SHAPES})

    def forward(self, step: int) -> Tensor:
        return torch.stack([term(gradient(name, step)) for name, term in self.terms.items()]).sum()


def start(name: str) -> Tensor:
    """A parameter's first value: a bfloat16 number, so that all precisions start from the same."""
    return _random(name, 0).bfloat16().float()


def gradient(name: str, step: int) -> Tensor:
    """The gradient of a batch, from 1: bfloat16 numbers too, whose squares and sums are exact in float32."""
    return (_random(name, step) * 0.1).bfloat16().float()


def _random(name: str, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step * 100 + ord(name))
    return torch.randn(SHAPES[name], generator=generator)


def main() -> None:
    """Do the jobs of the command line, one after the other."""
    deepspeed = importlib.import_module("deepspeed")
    torch.set_num_threads(1)
    # it refuses float16 on a CPU, where torch is slow with it; the arithmetic is there
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    deepspeed.init_distributed(dist_backend="gloo")
    for job in json.loads(sys.argv[1]):
        do(job, deepspeed)
        torch.distributed.barrier()


def do(job: dict[str, Any], deepspeed: Any) -> None:
    from kohya_ext.optim import AdaCoor
    from kohya_ext.runtime import averaging, options
    from kohya_ext.runtime.average import Average
    from kohya_ext.runtime.run import run
    from kohya_ext.runtime.zero import Zero

    model = Toy()
    groups = [{"params": [model.terms[name].weight for name in names]} for names in (("a", "b"), ("c",))]
    optimizer = AdaCoor(groups, lr=100.0, state_bits=job.get("bits", 32))
    values = {"enable_ema": True, "ema_decay": 0.9, "max_train_steps": 100, "save_precision": "float"}
    args = argparse.Namespace(deepspeed=True, output_dir=job["folder"], output_name="toy", **values)
    settings = options.read(args)
    assert settings is not None
    run.averages = [Average(args, settings)]
    averaging.meet(model)
    averaging.follow(optimizer)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True, **job["config"]}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    zero = Zero(engine, run.averages[0].names_of)
    run.averages[0].attach(zero)
    work(job, engine, zero, model)


def work(job: dict[str, Any], engine: Any, zero: Any, model: Toy) -> None:
    from kohya_ext.runtime import averaging
    from kohya_ext.runtime.zero_resume import divide_again, write_map

    folder, rank = Path(job["folder"]), torch.distributed.get_rank()
    divide_again(zero)
    if job.get("resume"):
        engine.load_checkpoint(job["resume"], "all")
        averaging.load_state(job["resume"])
    for step in range(job["first"], job["last"] + 1):
        loss = engine(step)
        if step == job.get("overflow"):
            loss = loss * float("inf")
        engine.backward(loss)
        engine.step()
        if rank == 0:
            torch.save(seen(zero, model), folder / f"step{step}.pt")
    if job.get("die"):
        save_while_another_dies(zero, model, folder)
    if job.get("save"):
        engine.save_checkpoint(job["save"], "all")
        averaging.save_state(job["save"])
        write_map(Path(job["save"]), zero)
    shadow = averaging.kept()[0].tracks[0].made()
    held = {
        "shadow": sum(average.numel() * average.element_size() for _, _, average in shadow.pairs()),
        "state": sum(state["vt"].numel() * state["vt"].element_size() for state in optimizer_state(engine)),
    }
    (folder / f"held{rank}.json").write_text(json.dumps(held))


def save_while_another_dies(zero: Any, model: Toy, folder: Path) -> None:
    """The first rank saves raw weights and EMA; the second is killed when it is asked for its part of the EMA."""
    from safetensors.torch import save_file

    from kohya_ext.runtime import averaging
    from kohya_ext.runtime.ema_outputs import Twins

    (average,) = averaging.kept()
    torch.distributed.barrier()  # the first one has read all that it has to see
    if torch.distributed.get_rank() == 1:
        give = zero.partition.peers._source

        def die(kind: str, index: int) -> Tensor:
            if kind != "weights":
                os.kill(os.getpid(), signal.SIGKILL)
            return give(kind, index)

        zero.partition.peers._source = die
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:

        def write(path: str, _: Any) -> None:
            save_file({name: value.detach().clone() for name, value in model.state_dict().items()}, path)

        Twins(average.args, average.options).save(str(folder / "toy.safetensors"), write)


def optimizer_state(engine: Any) -> list[dict[str, Tensor]]:
    """What the optimizer keeps of each tensor that it steps."""
    return list(engine.optimizer.optimizer.state.values())


def seen(zero: Any, model: Toy) -> dict[str, dict[str, Tensor]]:
    """Raw weights and EMA as the first rank puts them together, and what a saver finds in the model."""
    from kohya_ext.runtime import averaging

    (average,) = averaging.kept()
    wholes = zero.partition.wholes(averaged_only=True)
    names = [whole.name for whole in wholes]
    raw = dict(zip(names, zero.partition.whole_tensors("weights", wholes), strict=True))
    found: dict[str, dict[str, Tensor]] = {"raw": raw, "ema": {}, "saved ema": {}, "saved raw": {}}
    with averaging.raw_for_saving():
        found["saved raw"] = {name: value.clone() for name, value in model.state_dict().items()}
    if average.ready():
        found["ema"] = dict(zip(names, zero.partition.whole_tensors("ema0", wholes), strict=True))
        with average.saving():
            found["saved ema"] = {name: value.clone() for name, value in model.state_dict().items()}
    return found


if __name__ == "__main__":
    sys.path.insert(0, os.environ["KOHYA_EXT_SOURCE"])
    main()
