"""What a script finds out only once it builds its data loader and its scheduler: after the model has been loaded."""

from __future__ import annotations

from collections.abc import Iterator

from kohya_ext.presets.argument_faults import ArgumentFault
from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.pysource.sources import Sources

FILES = ("library/optimizer.py", "library/train_util.py")  # where releases keep what makes the scheduler, newest first
_CHECKED = "does not require `num_warmup_steps`"


def loop_faults(training: ScriptRun, sources: Sources | None) -> Iterator[ArgumentFault]:
    """Why a training stops between the model and its first step, or goes without its masks."""
    script = training.script
    if training.value("persistent_data_loader_workers") and training.value("max_data_loader_n_workers") == 0:
        effect = f"{script} stops: there are no data loader workers (max_data_loader_n_workers is 0) to keep alive"
        fix = "switch it off, or set max_data_loader_n_workers to 1 or more"
        yield ArgumentFault("training-stops", ("persistent_data_loader_workers",), effect, fix)
    if training.given.get("network_dim") == 0:
        effect = f"{script} stops: a network of rank 0 has nothing to train"
        yield ArgumentFault("training-stops", ("network_dim",), effect, "set it to 4 or more")
    masks = ("dataset_config", "conditioning_data_dir", "alpha_mask")
    if training.value("masked_loss") and not any(training.value(name) for name in masks):
        effect = "it does nothing without masks: they are named by conditioning_data_dir in a data set configuration"
        fix = "choose that configuration, or use --alpha_mask with images that have transparency"
        yield ArgumentFault("masked-loss", ("masked_loss",), effect, fix, "note")
    yield from _warm_up(training, sources)


def _warm_up(training: ScriptRun, sources: Sources | None) -> Iterator[ArgumentFault]:
    """Schedulers that refuse one; Adafactor with relative steps brings its own, whatever is chosen."""
    checked = any(_CHECKED in (sources.read(path) or "") for path in FILES) if sources is not None else False
    if not checked or not parse_number(training.value("lr_warmup_steps") or 0):
        return
    scheduler = str(training.value("lr_scheduler_type") or training.value("lr_scheduler") or "")
    words = [str(word).replace(" ", "") for word in training.value("optimizer_args") or ()]
    adafactor = str(training.value("optimizer_type") or "").casefold() == "adafactor"
    relative = adafactor and "relative_step=False" not in words
    fix = "set the warm-up to 0"
    if relative and not training.value("lr_scheduler_type"):
        scheduler, fix = "adafactor", f"{fix}, or write relative_step=False into optimizer_args"
    elif scheduler == "constant":
        fix = f"{fix}, or choose constant_with_warmup"
    elif not scheduler.startswith("adafactor") and not training.value("lr_scheduler_type"):
        return
    effect = f"{training.script} stops: the scheduler {scheduler} does not take a warm-up"
    yield ArgumentFault("scheduler", ("lr_warmup", "lr_warmup_steps"), effect, fix)
