"""What SDXL's U-Net keeps of one image for its backward pass, by the shapes of the tensors; nothing is calculated.

    SD_SCRIPTS_GIT=<git directory> python -m benchmarks.activations [--size 1024]

The memory figures of the presets count this. Method. sd-scripts' own U-Net, read from git, runs its forward pass on
tensors that have a shape and no contents (torch's FakeTensorMode), under autocast to 16 bits; every distinct storage
that autograd keeps is counted once, the weights apart. The 16-bit copies of the weights that autocast makes are told
apart by their shapes. "block": the most that one block keeps which gradient checkpointing would compute again. What a
GPU's autocast runs in 32 bits and a CPU's does not, plain attention's softmax above all, is in 32 bits here too.
Needs einops.
"""

from __future__ import annotations

import argparse
import sys
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.lora import upstream
from benchmarks.timing import table
from kohya_ext.tracing.as_cuda import autocast_as_cuda

SOURCE = "library/sdxl_original_unet.py"
GIGA = 1e9


def unet_module() -> Any:
    """sd-scripts' module of the U-Net, its logging stood in for."""
    utils = ModuleType("library.utils")
    utils.setup_logging = lambda *_, **__: None  # type: ignore[attr-defined]
    sys.modules["library.utils"] = utils
    module = ModuleType("sdxl_original_unet")
    exec(compile(upstream(SOURCE), SOURCE, "exec"), module.__dict__)
    return module


class Kept:
    """Counts the storages that autograd keeps. total, copies: bytes in total, and of them 16-bit copies of weights."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.weights = {one.untyped_storage()._cdata for one in net.parameters()}
        shapes = [one.shape for one in net.parameters()]
        self.shapes = {tuple(shape) for shape in shapes} | {tuple(reversed(shape)) for shape in shapes}
        self.seen: dict[int, torch.Tensor] = {}
        self.total = self.copies = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.seen:
            self.seen[storage._cdata] = tensor
            self.total += storage.nbytes()
            self.copies += storage.nbytes() if tuple(tensor.shape) in self.shapes else 0
        return tensor

    @property
    def activations(self) -> int:
        return self.total - self.copies


def count(module: Any, size: int, *, sdpa: bool, checkpointing: bool) -> tuple[Kept, int]:
    """What the forward pass of one image of `size` x `size` keeps, and the most of one block, in bytes."""
    with FakeTensorMode():
        net = module.SdxlUNet2DConditionModel().train()
        net.set_use_sdpa(sdpa)
        if checkpointing:
            net.enable_gradient_checkpointing()
        kept = Kept(net)
        largest = 0

        def entered(block: Any, _: Any) -> None:
            block.kept_before = kept.activations

        def left(block: Any, *_: Any) -> None:
            nonlocal largest
            largest = max(largest, kept.activations - block.kept_before)

        for block in net.modules():
            if block is not net and hasattr(block, "gradient_checkpointing") and not _contains_another(block):
                block.register_forward_pre_hook(entered)
                block.register_forward_hook(left)
        latents, text, pooled = torch.randn(1, 4, size // 8, size // 8), torch.randn(1, 77, 2048), torch.randn(1, 2816)
        text.requires_grad_()
        saved = torch.autograd.graph.saved_tensors_hooks(kept, lambda kept: kept)
        with saved, autocast_as_cuda(), torch.autocast("cpu", torch.bfloat16):
            net(latents, torch.tensor([5]), text, pooled)
    return kept, largest


def _contains_another(block: torch.nn.Module) -> bool:
    return any(one is not block and hasattr(one, "gradient_checkpointing") for one in block.modules())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the image in pixels")
    size = parser.parse_args().size
    module = unet_module()
    rows: list[tuple[str, ...]] = []
    for sdpa, checkpointing in ((True, False), (False, False), (True, True)):
        kept, block = count(module, size, sdpa=sdpa, checkpointing=checkpointing)
        figures = [f"{number / GIGA:.1f}" for number in (kept.activations, kept.copies, block)]
        rows.append(("saving (sdpa)" if sdpa else "plain", "on" if checkpointing else "off", *figures))
    print(table(rows, ("attention", "checkpointing", "activations GB", "copies of weights GB", "block GB")))


if __name__ == "__main__":
    main()
