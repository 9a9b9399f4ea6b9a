"""LoRA, LyCORIS, LECO and LLLite runs: their network saves itself, by one call that all releases share.

`save_weights(file, dtype, metadata)`, or `save_lllite_weights` with the same parameters, is replaced on the *instance*
as the network passes through `accelerator.prepare`; that survives wrapping and unwrapping and is in no state_dict.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kohya_ext.runtime.average import Average
from kohya_ext.runtime.ema_outputs import Twins

SAVERS = ("save_weights", "save_lllite_weights")


def save_average_too(network: Any, twins: Twins) -> None:
    """Make `network` save the EMA whenever it saves itself; other models are left alone."""
    for name in SAVERS:
        save = getattr(network, name, None)
        if callable(save) and not hasattr(save, "__kohya_ext__"):
            setattr(network, name, _Saver(save, twins))


class _Saver:
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
