"""Runs a script and counts what its gradients take: `rig_gradients.py [--half-depth] [--unsaved] SCRIPT FLAGS...`.

Prints, as the last line, {"live": most bytes of gradients at a time, "largest": bytes of the largest parameter's
gradient, "anonymous": most bytes of anonymous memory resident, "parameters": how many}. --half-depth: SDXL's U-Net with
half of its transformer blocks, for machines that the whole one does not fit unfused. --unsaved: the trained SDXL is not
saved at the end, which would take the memory of another model.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Meter:
    """Bytes of the gradients that exist: told by hooks around upstream's own hooks, or at the step when it has none."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.seen: set[int] = set()
        self.most = self.largest = self.anonymous = 0

    def note(self, parameter: Any) -> None:
        """A gradient came, or went."""
        self.live.pop(id(parameter), None)
        if parameter.grad is not None:
            size = parameter.grad.numel() * parameter.grad.element_size()
            self.live[id(parameter)] = size
            self.seen.add(id(parameter))
            self.largest = max(self.largest, size)
        self.most = max(self.most, sum(self.live.values()))

    def watch_memory(self) -> None:
        while True:
            found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
            self.anonymous = max(self.anonymous, int(found[1]) << 10 if found else 0)
            time.sleep(0.05)

    def report(self) -> str:
        numbers = {"live": self.most, "largest": self.largest, "anonymous": self.anonymous}
        return json.dumps({**numbers, "parameters": len(self.seen)})


def watch(meter: Meter) -> None:
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    register = torch.Tensor.register_post_accumulate_grad_hook

    def register_between(self: Any, hook: Any) -> Any:
        def between(parameter: Any) -> None:
            meter.note(parameter)
            hook(parameter)
            meter.note(parameter)

        return register(self, between)

    torch.Tensor.register_post_accumulate_grad_hook = register_between

    def before_step(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                meter.note(parameter)

    register_optimizer_step_pre_hook(before_step)
    threading.Thread(target=meter.watch_memory, daemon=True).start()


def halve_depth() -> None:
    sys.path.insert(0, "")
    import library.sdxl_original_unet as unet

    init = unet.Transformer2DModel.__init__

    def init_half(self: Any, *args: Any, **named: Any) -> None:
        named["num_transformer_layers"] = named["num_transformer_layers"] // 2
        init(self, *args, **named)

    unet.Transformer2DModel.__init__ = init_half


def save_nothing() -> None:
    import library.sdxl_train_util as util

    util.save_sd_model_on_train_end = lambda *_, **__: print("not saved")


PREPARATIONS = {"--half-depth": halve_depth, "--unsaved": save_nothing}

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = ""
    while prepare := PREPARATIONS.get(sys.argv[0]):
        prepare()
        sys.argv = sys.argv[1:]
    meter = Meter()
    watch(meter)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        print("\n" + meter.report(), flush=True)
