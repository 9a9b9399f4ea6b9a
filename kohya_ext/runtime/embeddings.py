"""Textual inversion: the scripts save *copies* of the trained rows, so the EMA's rows are taken when they save.

All releases end in a `save_weights(file, updated_embs, save_dtype, ...)`, a method of the script's trainer (since 2023)
or a function of the script. The trained tokens are the last rows of each text encoder's embeddings, whose weights are
what the optimizer holds, in the same order.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kohya_ext.runtime import safe_save
from kohya_ext.runtime.average import Average
from kohya_ext.runtime.ema_outputs import Twins

_PARAMETER = "updated_embs"
# SDXL's script imports the trainer from SD's
_MODULES = ("__main__", "train_textual_inversion")


def wrap_saver_of_script(twins: Twins) -> None:
    """Wrap `save_weights` of a textual inversion script that is running; other scripts have none like it."""
    for holder, save in list(_savers()):
        holder.save_weights = _also_of_average(save, twins)


def _savers() -> Iterator[tuple[Any, Callable[..., Any]]]:
    for module in (sys.modules[name] for name in _MODULES if name in sys.modules):
        own = [
            value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        for holder in (module, *own):
            save = vars(holder).get("save_weights")
            if inspect.isfunction(save) and _PARAMETER in inspect.signature(save).parameters:
                yield holder, save


def _also_of_average(save: Callable[..., Any], twins: Twins) -> Callable[..., Any]:
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
