"""The losses that a script averages for its logs: read for a state, and given back after a resume."""

from __future__ import annotations

from typing import Any

from kohya_ext.runtime.training_script import TrainingScript

# objects with `loss_list` and `loss_total`, since sd-scripts 0.7
_RECORDERS = ("loss_recorder", "val_step_loss_recorder", "val_epoch_loss_recorder")
# variables of the scripts that have no such object
_LIST, _TOTAL = "loss_list", "loss_total"
_THIS = "this"


def read(script: TrainingScript, *, batch: int, within: bool) -> dict[str, Any]:
    """The losses so far. within: the script has not yet counted that of the batch with this number in its epoch."""
    values = script.values(*_RECORDERS, _LIST, _TOTAL, "loss", "epoch")
    found: dict[str, Any] = {}
    for name in _RECORDERS:
        recorder = values.get(name)
        if recorder is not None:
            found[name] = {_LIST: [float(one) for one in recorder.loss_list], _TOTAL: float(recorder.loss_total)}
    if isinstance(values.get(_LIST), list):
        found[_LIST] = [float(one) for one in values[_LIST]]
    if _TOTAL in values:
        found[_TOTAL] = float(values[_TOTAL])
    if within:
        found[_THIS] = {"loss": float(values["loss"].detach()), "step": batch, "epoch": int(values["epoch"])}
    return found


def give_back(script: TrainingScript, found: dict[str, Any], *, within: bool) -> None:
    """Let the script average on. within: the state was saved within the epoch that is to be continued."""
    values = script.values(*_RECORDERS, _LIST, _TOTAL)
    this = found.get(_THIS)
    for name in _RECORDERS:
        if name in found and name in values:
            values[name].loss_list[:] = found[name][_LIST]
            values[name].loss_total = found[name][_TOTAL]
    if this is not None and _RECORDERS[0] in values:
        values[_RECORDERS[0]].add(**this)
    if _TOTAL not in found or _TOTAL not in values:
        return
    total, listed = found[_TOTAL], values.get(_LIST)
    if isinstance(listed, list):
        listed[:] = found[_LIST]
        if this is not None and this["epoch"] == 0:
            listed.append(this["loss"])
        elif this is not None:
            total -= listed[this["step"]]
            listed[this["step"]] = this["loss"]
    elif not within:
        return  # counted within an epoch only: it has just begun again
    script.put(loss_total=total + (this["loss"] if this is not None else 0.0))
