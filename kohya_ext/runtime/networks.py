"""LoRA runs: the network's `save_weights(file, dtype, metadata)` is the one call all scripts and releases share.

It is replaced on the *instance*, as the network passes through `accelerator.prepare`; that survives wrapping and
unwrapping and is in no state_dict.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kohya_ext.runtime import averaging, naming, written
from kohya_ext.runtime.options import EmaOptions


def save_average_too(network: Any, args: argparse.Namespace, settings: EmaOptions) -> None:
    """Make `network` save the EMA whenever it saves itself; other models are left alone."""
    save_weights = getattr(network, "save_weights", None)
    if callable(save_weights) and not hasattr(save_weights, "__kohya_ext__"):
        network.save_weights = _Saver(save_weights, args, settings)


class _Saver:
    """`save_weights` of one network, raw and EMA; it also removes EMA files whose raw twin has been rotated away."""

    __kohya_ext__ = True

    def __init__(self, original: Callable[..., Any], args: argparse.Namespace, settings: EmaOptions) -> None:
        functools.update_wrapper(self, original)
        self.original, self.args, self.settings = original, args, settings
        self.twins: dict[str, str] = {}  # EMA file -> raw file

    def __call__(self, file: str, dtype: Any, metadata: dict[str, Any] | None, *rest: Any, **named: Any) -> Any:
        average = averaging.current()
        if average is None or not average.ready(say_so=self.settings.save == "only"):
            return self.original(file, dtype, metadata, *rest, **named)
        target = str(file)
        if self.settings.save == "beside":
            # a copy: upstream's save_weights writes the hashes of these weights into the caller's metadata
            self.original(file, dtype, None if metadata is None else dict(metadata), *rest, **named)
            target = naming.file_of_average(target, getattr(self.args, "output_name", None))
            self.twins[target] = str(file)
        with average.in_place(), written.moved_into_place(target) as temporary:
            self.original(temporary, dtype, {**(metadata or {}), **average.metadata()}, *rest, **named)
        if self.settings.save == "beside":
            self._upload(target)
            self._rotate()
        return None

    def _upload(self, file: str) -> None:
        """To Hugging Face, where the script sends the raw file."""
        uploader = sys.modules.get("library.huggingface_util")
        if uploader is not None and getattr(self.args, "huggingface_repo_id", None) is not None:
            uploader.upload(self.args, file, "/" + Path(file).name)

    def _rotate(self) -> None:
        """The scripts rotate raw files by themselves; a raw file that went for another reason takes nothing along."""
        if not any(getattr(self.args, flag, None) is not None for flag in ("save_last_n_epochs", "save_last_n_steps")):
            return
        for ema_file, raw_file in list(self.twins.items()):
            if not Path(raw_file).exists():
                Path(ema_file).unlink(missing_ok=True)
                del self.twins[ema_file]
