"""ControlNet runs: the scripts write `network.state_dict()` from a function nested in their `train`.

Nothing of that function can be replaced. But it writes through `safetensors.torch.save_file` or `torch.save`, looked up
as it runs: those are wrapped, and where the run's own checkpoint passes, the same is written from the EMA.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kohya_ext.runtime.average import Average
from kohya_ext.runtime.ema_outputs import Twins
from kohya_ext.runtime.run import run

SCRIPTS = ("train_controlnet", "train_control_net", "sdxl_train_control_net")
# what SD's script renames the network's tensors with before it writes them
_RENAMING = ("library.model_util", "convert_controlnet_state_dict_to_sd")
# Anima's LLLite script calls this function, which it has imported by name
_LLLITE = "save_lllite_model"


def wrap_writers(network: Any, args: argparse.Namespace, twins: Twins) -> None:
    """From now on a checkpoint of `network` that the running ControlNet script writes gets its twin."""
    if Path(sys.argv[0]).stem not in SCRIPTS or not hasattr(network, "state_dict"):
        return
    import safetensors.torch
    import torch

    for module, name in ((safetensors.torch, "save_file"), (torch, "save")):
        if not isinstance(getattr(module, name), _Writer):
            run.replace(module, name, _Writer(getattr(module, name), network, args, twins))


def wrap_saver_of_script(twins: Twins) -> None:
    """Wrap `save_lllite_model(file, network, dtype, metadata)` in the running script, if it has one."""
    script = vars(sys.modules["__main__"])
    save = script.get(_LLLITE)
    if not callable(save):
        return

    @functools.wraps(save)
    def save_both(
        file: str, network: Any, dtype: Any = None, metadata: dict[str, str] | None = None, **named: Any
    ) -> None:
        def write(path: str, average: Average | None) -> None:
            extra = {} if average is None else average.metadata()
            save(path, network, dtype=dtype, metadata={**(metadata or {}), **extra} or metadata, **named)

        twins.save(str(file), write)

    script[_LLLITE] = save_both


class _Writer:
    """`save_file` or `torch.save`, which also writes the twins of one network's checkpoints."""

    def __init__(self, original: Callable[..., Any], network: Any, args: argparse.Namespace, twins: Twins) -> None:
        functools.update_wrapper(self, original)
        self.original, self.network, self.args, self.twins = original, network, args, twins

    def __call__(self, tensors: Any, file: Any, *rest: Any, **named: Any) -> Any:
        if not self._is_checkpoint(tensors, file):
            return self.original(tensors, file, *rest, **named)

        def write(path: str, average: Average | None) -> None:
            if average is None:
                self.original(tensors, path, *rest, **named)
            elif Path(path).suffix == ".safetensors":
                metadata = (rest[0] if rest else named.get("metadata")) or {}
                self.original(self._refilled(tensors), path, metadata={**metadata, **average.metadata()})
            else:
                self.original(self._refilled(tensors), path, *rest, **named)

        return self.twins.save(str(file), write)

    def _is_checkpoint(self, tensors: Any, file: Any) -> bool:
        """Resume states lie in folders of their own, and our temporary files too."""
        if not isinstance(tensors, dict) or not isinstance(file, str):
            return False
        path = Path(file)
        return path.parent == Path(self.args.output_dir) and path.suffix == f".{self.args.save_model_as}"

    def _refilled(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The same dictionary with the EMA's values: the script has no further use for the raw ones, and a second
        copy of the model would take memory.
        """
        values = self.network.state_dict()
        if values.keys() != tensors.keys():
            values = getattr(sys.modules[_RENAMING[0]], _RENAMING[1])(values)
        if values.keys() != tensors.keys():
            raise RuntimeError("the script names the network's tensors in a way that is not known")
        for name, value in values.items():
            if tensors[name].data_ptr() != value.data_ptr():
                tensors[name].copy_(value)
        return tensors
