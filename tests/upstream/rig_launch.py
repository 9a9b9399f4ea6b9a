"""Runs a training script with something about its surroundings changed: `rig_launch.py WHAT[+WHAT] SCRIPT FLAGS...`.

nothing: as it is.
frozen_alone: models without gradients are not wrapped for several processes. accelerate does so on GPUs; on CPUs it
fails, and a LoRA run prepares its frozen U-Net.
older_diffusers: a module of diffusers under the name it had in 2023, which XTI imports.
small_control_nets: ControlNets of the size of the rig's models; upstream writes their widths out.
small_hunyuan_image: HunyuanImage of that size, see `rig_hunyuan_image`.
overflows: a gradient scaler as under fp16, which accelerate keeps on a GPU only. Here it is torch's own, for the CPU,
handed to every accelerator; at OVERFLOWS the scaled loss is infinite, as it is when fp16 overflows. RIG_SEEN says how
many batches the runs before a resume have had.
swapping: with --blocks_to_swap blocks exchange the storages of their weights as on a GPU. On a CPU, where moving to the
CPU copies nothing, upstream's come to share one.
compiled: the average is blended by compiled passes, as it is for models of real size.
killed: RIG_END sends the process a signal. "SIGNAL state N": in the middle of the state that is saved as the Nth;
"SIGNAL backward N": before the Nth backward pass; "SIGNAL file PART": when half of the first safetensors file whose
name has that part is written; "SIGNAL after S": S seconds after the run has begun to listen for signals.
waiting: where a run would load a state, it is forked for each order of `rig_moments.py`.
full_disk: from the first step on, writing an EMA file fails as on a full disk, with half of it written.

of_2023_spring: what sd-scripts 0.6 takes from elsewhere and no offline machine has: the shape of SD1.5's text encoder
(from a hub; here the rig's own), an augmentation library that it imports and, unless told to, never calls, and
xformers, which its diffusers insists on before it can switch it off.

RIG_VARIANTS, a JSON object of name -> further flags, runs the script once for each in one process, which saves most of
the time; the name is appended to that of the output.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import runpy
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OVERFLOWS = (1, 3, 4, 7)


def nothing() -> None:
    pass


def compiled() -> None:
    from kohya_ext.ema import compiled as module

    module.WORTHWHILE = 0
    module.SMALLEST = 1 << 10


def full_disk() -> None:
    import safetensors.torch

    write = safetensors.torch.save_file

    def save_file(tensors: Any, filename: Any, *args: Any, **named: Any) -> None:
        metadata = (args[0] if args else named.get("metadata")) or {}
        if not any(key.startswith("kohya_ext_ema_") for key in metadata):
            return write(tensors, filename, *args, **named)
        Path(filename).write_bytes(bytes(1 << 20))
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    safetensors.torch.save_file = save_file


def killed() -> None:
    words = os.environ["RIG_END"].split()
    if words:
        name, place, which = words
        _PLACES[place](functools.partial(os.kill, os.getpid(), getattr(signal, name)), which)


def waiting() -> None:
    """Progress bars have a thread that looks after them, and images are decoded by several: neither survives a fork."""
    import tqdm

    from tests.upstream import rig_moments

    tqdm.tqdm.monitor_interval = 0
    importlib.import_module("cv2").setNumThreads(0)
    for name in rig_moments.MODULES:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if load := vars(module).get(rig_moments.PLACE):
                setattr(module, rig_moments.PLACE, _after_waiting(load, rig_moments.wait))


def _after_waiting(load: Callable[..., Any], wait: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def wait_and_load(accelerator: Any, args: Any) -> Any:
        wait(accelerator, args)
        return load(accelerator, args)

    return wait_and_load


def _in_state(end: Callable[[], None], number: str) -> None:
    import accelerate.accelerator as module

    module.save_accelerator_state = _ending(module.save_accelerator_state, end, int(number))


def _before_backward(end: Callable[[], None], number: str) -> None:
    import accelerate

    accelerate.Accelerator.backward = _ending(accelerate.Accelerator.backward, end, int(number))


def _ending(function: Callable[..., Any], end: Callable[[], None], number: int) -> Callable[..., Any]:
    """The function, which calls `end` first when it is called for the `number`th time."""
    calls = itertools.count(1)

    @functools.wraps(function)
    def call_or_end(*args: Any, **named: Any) -> Any:
        if next(calls) == number:
            end()
        return function(*args, **named)

    return call_or_end


def _in_file(end: Callable[[], None], part: str) -> None:
    import safetensors.torch

    write = safetensors.torch.save_file

    @functools.wraps(write)
    def write_or_end(tensors: Any, filename: Any, *args: Any, **named: Any) -> None:
        write(tensors, filename, *args, **named)
        if part in Path(filename).name:
            os.truncate(filename, Path(filename).stat().st_size // 2)
            end()

    safetensors.torch.save_file = write_or_end


def _after(end: Callable[[], None], seconds: str) -> None:
    """The first who listens for SIGTERM is the run; what comes before its first step ends it as ever."""
    listen: Any = signal.signal
    heard = itertools.count(1)

    def listen_and_time(number: Any, handler: Any) -> Any:
        before = listen(number, handler)
        if number == signal.SIGTERM and callable(handler) and next(heard) == 1:
            timer = threading.Timer(float(seconds), end)
            timer.daemon = True
            timer.start()
        return before

    setattr(signal, listen.__name__, listen_and_time)


_PLACES = {"state": _in_state, "backward": _before_backward, "file": _in_file, "after": _after}


def overflows() -> None:
    import accelerate
    import torch

    init = accelerate.Accelerator.__init__

    def init_with_scaler(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        self.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scale, losses = scaler.scale, itertools.count(1 + int(os.environ.get("RIG_SEEN", "0")))

        def scale_or_overflow(loss: Any) -> Any:
            return scale(loss) * (float("inf") if next(losses) in OVERFLOWS else 1.0)

        scaler.scale = scale_or_overflow

    accelerate.Accelerator.__init__ = init_with_scaler


def frozen_alone() -> None:
    import accelerate

    prepare_model = accelerate.Accelerator.prepare_model

    def prepare_if_trained(self: Any, model: Any, *args: Any, **named: Any) -> Any:
        trained = any(parameter.requires_grad for parameter in model.parameters())
        return prepare_model(self, model, *args, **named) if trained else model.to(self.device)

    accelerate.Accelerator.prepare_model = prepare_if_trained


def of_2023_spring() -> None:
    import transformers

    def from_pretrained(name: str, **_: Any) -> Any:
        shape = transformers.CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=2, projection_dim=32
        )
        return transformers.CLIPTextModel(shape)

    transformers.CLIPTextModel.from_pretrained = from_pretrained
    from diffusers.models import attention

    for block in vars(attention).values():
        if hasattr(block, "set_use_memory_efficient_attention_xformers"):
            block.set_use_memory_efficient_attention_xformers = lambda self, _: None
    unused = types.ModuleType("albumentations")
    for name in ("OneOf", "HueSaturationValue", "RandomGamma", "HorizontalFlip", "Compose"):
        setattr(unused, name, type(name, (), {"__init__": lambda self, *_, **__: None}))
    sys.modules["albumentations"] = unused


def swapping() -> None:
    def exchange(device: Any, leaves: Any, comes: Any) -> None:
        for one, other in zip(leaves.modules(), comes.modules(), strict=True):
            if getattr(one, "weight", None) is not None:
                storage = one.weight.data
                one.weight.data = storage.clone()
                storage.copy_(other.weight.data)
                other.weight.data = storage

    module = importlib.import_module("library.custom_offloading_utils")
    module.swap_weight_devices_no_cuda = exchange  # type: ignore[attr-defined]


def older_diffusers() -> None:
    from diffusers.models.unets import unet_2d_condition

    sys.modules["diffusers.models.unet_2d_condition"] = unet_2d_condition


def small_control_nets() -> None:
    import diffusers
    from torch import nn

    widths, context = (32, 64, 128, 128), 32

    def from_unet(unet: Any) -> Any:
        return diffusers.ControlNetModel(block_out_channels=widths, cross_attention_dim=context)

    diffusers.ControlNetModel.from_unet = from_unet
    try:
        import library.sdxl_original_control_net as sdxl
    except ImportError:  # not before sd-scripts 0.9
        return
    init = sdxl.SdxlControlNet.__init__

    def init_small(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        embedding = self.controlnet_cond_embedding
        embedding.conv_out = nn.Conv2d(embedding.conv_out.in_channels, 32, kernel_size=3, padding=1)
        for number, block in enumerate(self.controlnet_down_blocks):
            self.controlnet_down_blocks[number] = nn.Conv2d(block.in_channels // 10, block.in_channels // 10, 1)
        self.controlnet_mid_block = nn.Conv2d(128, 128, 1)

    sdxl.SdxlControlNet.__init__ = init_small


def small_hunyuan_image() -> None:
    runpy.run_path(str(Path(__file__).with_name("rig_hunyuan_image.py")))["shrink"]()


def stay_together() -> None:
    """The processes of one run go on to the next: newer accelerate parts them at the end of training."""
    import accelerate

    accelerate.Accelerator.end_training = lambda self: None


def forget_the_scripts() -> None:
    """Modules of the tree hold what may be set once in a process only."""
    here = str(Path.cwd())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(here):
            del sys.modules[name]


def runs_of(arguments: list[str]) -> Iterator[list[str]]:
    variants: dict[str, list[str]] = json.loads(os.environ.get("RIG_VARIANTS", "null")) or {}
    if not variants:
        yield arguments
        return
    stay_together()
    for name, flags in variants.items():
        forget_the_scripts()
        yield [f"{word}-{name}" if word.startswith("--output_name=") else word for word in arguments] + flags


_ALL = (
    nothing, compiled, killed, waiting, full_disk, overflows, swapping, frozen_alone, older_diffusers,
    small_control_nets, small_hunyuan_image, of_2023_spring,
)  # fmt: skip
WHATS = {what.__name__: what for what in _ALL}


def change(whats: str) -> None:
    """Change the surroundings as `whats` says, names joined by +."""
    for what in whats.split("+"):
        WHATS[what]()


if __name__ == "__main__":
    _, whats, script, *flags = sys.argv
    sys.path[0] = ""
    change(whats)
    for arguments in runs_of(flags):
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
