"""What scripts save that is not a full checkpoint gets a twin from the EMA: networks, embeddings, ControlNets.

* LoRA, LyCORIS, LECO and LLLite: the network saves itself, by one call that all releases share,
  `save_weights(file, dtype, metadata)`, or `save_lllite_weights` with the same parameters. It is replaced on the
  *instance* as the network passes through `accelerator.prepare`; that survives wrapping and unwrapping and is in no
  state_dict.
* Textual inversion: the scripts save *copies* of the trained rows, so the EMA's rows are taken when they save. All
  releases end in a `save_weights(file, updated_embs, save_dtype, ...)`, a method of the script's trainer (since 2023)
  or a function of the script. The trained tokens are the last rows of each text encoder's embeddings, whose weights are
  what the optimizer holds, in the same order.
* ControlNet: the scripts write `network.state_dict()` from a function nested in their `train`. Nothing of that function
  can be replaced. But it writes through `safetensors.torch.save_file` or `torch.save`, looked up as it runs: those are
  wrapped, and where the run's own checkpoint passes, the same is written from the EMA.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kohya_ext.runtime import safe_save
from kohya_ext.runtime.average import Average
from kohya_ext.runtime.ema_outputs import Twins
from kohya_ext.runtime.run import run

# the calls by which a network saves itself
_NETWORK_SAVERS = ("save_weights", "save_lllite_weights")
# the argument of a textual inversion script that holds the trained rows
_PARAMETER = "updated_embs"
# SDXL's script imports the trainer from SD's
_EMBEDDING_MODULES = ("__main__", "train_textual_inversion")
_CONTROLNET_SCRIPTS = ("train_controlnet", "train_control_net", "sdxl_train_control_net")
# what SD's script renames the network's tensors with before it writes them
_RENAMING = ("library.model_util", "convert_controlnet_state_dict_to_sd")
# Anima's LLLite script calls this function, which it has imported by name
_LLLITE = "save_lllite_model"


def wrap_saver_of_network(network: Any, twins: Twins) -> None:
    """Make `network` save the EMA whenever it saves itself; other models are left alone."""
    for name in _NETWORK_SAVERS:
        save = getattr(network, name, None)
        if callable(save) and not hasattr(save, "__kohya_ext__"):
            setattr(network, name, _NetworkSaver(save, twins))


class _NetworkSaver:
    """`save_weights` of one network, raw and EMA."""

    __kohya_ext__ = True

    def __init__(self, original: Callable[..., Any], twins: Twins) -> None:
        functools.update_wrapper(self, original)
        self.original, self.twins = original, twins

    def __call__(self, file: str, dtype: Any, metadata: dict[str, Any] | None, *rest: Any, **named: Any) -> None:
        def write(path: str, average: Average | None) -> None:
            # a copy: upstream's save_weights writes the hashes of these weights into the caller's metadata
            about = None if metadata is None else dict(metadata)
            if average is not None:
                about = {**(about or {}), **average.metadata()}
            self.original(path, dtype, about, *rest, **named)

        self.twins.save(str(file), write)


def wrap_saver_of_embeddings(twins: Twins) -> None:
    """Wrap `save_weights` of a textual inversion script that is running; other scripts have none like it."""
    for holder, save in list(_embedding_savers()):
        run.replace(holder, "save_weights", _embeddings_too(save, twins))


def _embedding_savers() -> Iterator[tuple[Any, Callable[..., Any]]]:
    for module in (sys.modules[name] for name in _EMBEDDING_MODULES if name in sys.modules):
        own = [
            value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        for holder in (module, *own):
            save = vars(holder).get("save_weights")
            if inspect.isfunction(save) and _PARAMETER in inspect.signature(save).parameters:
                yield holder, save


def _embeddings_too(save: Callable[..., Any], twins: Twins) -> Callable[..., Any]:
    signature = inspect.signature(save)

    @functools.wraps(save)
    def save_both(*args: Any, **named: Any) -> None:
        call = signature.bind(*args, **named)
        raw = call.arguments[_PARAMETER]

        def write(path: str, average: Average | None) -> None:
            call.arguments["file"] = path
            if average is None:
                call.arguments[_PARAMETER] = raw
                save(*call.args, **call.kwargs)
                return
            call.arguments[_PARAMETER] = rows_of_average(average, raw)
            with safe_save.with_metadata(average.metadata()):
                save(*call.args, **call.kwargs)

        twins.save(str(call.arguments["file"]), write)

    return save_both


def rows_of_average(average: Average, raw: Any) -> Any:
    """The EMA's rows in the form of `raw`: a tensor of trained rows, or a list of one for each text encoder.

    To be called while the EMA is in place. Raises RuntimeError where `raw` are not the last rows of the raw weights.
    """
    import torch

    given = raw if isinstance(raw, list) else [raw]
    weights = average.parameters()
    with average.raw():
        known = len(given) == len(weights) and all(
            torch.equal(weight.detach()[-len(rows) :].to(rows.device), rows)
            for weight, rows in zip(weights, given, strict=True)
        )
    if not known:
        raise RuntimeError("the trained embeddings are not the last rows of those in training")
    rows = [weight.detach()[-len(rows) :].clone() for weight, rows in zip(weights, given, strict=True)]
    return rows if isinstance(raw, list) else rows[0]


def wrap_writers(network: Any, args: argparse.Namespace, twins: Twins) -> None:
    """From now on a checkpoint of `network` that the running ControlNet script writes gets its twin."""
    if Path(sys.argv[0]).stem not in _CONTROLNET_SCRIPTS or not hasattr(network, "state_dict"):
        return
    import safetensors.torch
    import torch

    for module, name in ((safetensors.torch, "save_file"), (torch, "save")):
        if not isinstance(getattr(module, name), _ControlNetWriter):
            run.replace(module, name, _ControlNetWriter(getattr(module, name), network, args, twins))


def wrap_saver_of_lllite(twins: Twins) -> None:
    """Wrap `save_lllite_model(file, network, dtype, metadata)` in the running script, if it has one."""
    script = sys.modules["__main__"]
    save = getattr(script, _LLLITE, None)
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

    run.replace(script, _LLLITE, save_both)


class _ControlNetWriter:
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
        """Resume states are in folders of their own, and our temporary files too."""
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
            raise RuntimeError("the script names the network's tensors in an unknown way")
        for name, value in values.items():
            if tensors[name].data_ptr() != value.data_ptr():
                tensors[name].copy_(value)
        return tensors
