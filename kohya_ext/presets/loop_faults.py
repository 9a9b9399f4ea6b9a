"""What a script finds out only once it builds its data loader and its scheduler: after the model has been loaded."""

from __future__ import annotations

from collections.abc import Iterator

from kohya_ext.presets.argument_faults import ArgumentFault
from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.pysource.sources import Sources

WARM_UPS = ("lr_warmup", "lr_warmup_steps")
FILES = ("library/optimizer.py", "library/train_util.py")  # where releases keep what makes the scheduler, newest first
GUI_FILE, GUI_HANDLER = "kohya_gui/class_basic_training.py", "def lr_scheduler_changed("
_CHECKED = "does not require `num_warmup_steps`"


def loop_faults(training: ScriptRun, sources: Sources | None, gui: Sources | None = None) -> Iterator[ArgumentFault]:
    """Why a training stops between the model and its first step, or goes without its masks.

    sources: the training code; gui: the GUI's, where one starts the training.
    """
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
    warm_up = warm_up_fault(training, sources, gui)
    if warm_up is not None:
        yield warm_up


def warm_up_fault(training: ScriptRun, sources: Sources | None, gui: Sources | None = None) -> ArgumentFault | None:
    """Schedulers that refuse a warm-up; Adafactor with relative steps brings its own scheduler, whatever is chosen."""
    checked = any(_CHECKED in (sources.read(path) or "") for path in FILES) if sources is not None else False
    if not checked or not parse_number(training.value("lr_warmup_steps") or 0):
        return None
    scheduler = str(training.value("lr_scheduler_type") or training.value("lr_scheduler") or "")
    words = [str(word).replace(" ", "") for word in training.value("optimizer_args") or ()]
    adafactor = str(training.value("optimizer_type") or "").casefold() == "adafactor"
    relative = adafactor and "relative_step=False" not in words
    fix, more = "set the warm-up to 0", ""
    if relative and not training.value("lr_scheduler_type"):
        scheduler, fix = "adafactor", f"{fix}, or write relative_step=False into optimizer_args"
    elif scheduler == "constant":
        fix = f"{fix}, or choose constant_with_warmup"
        if gui is not None and GUI_HANDLER in (gui.read(GUI_FILE) or ""):
            # seen in v26.0.0 with a browser: loading such a preset twice, then one with cosine and no warm-up
            more = "; the GUI sets it to 0 only where its list showed another scheduler before, and then adds it to the"
            more += " next preset with another one"
    elif not scheduler.startswith("adafactor") and not training.value("lr_scheduler_type"):
        return None
    effect = f"{training.script} stops: the scheduler {scheduler} does not take a warm-up{more}"
    return ArgumentFault("scheduler", WARM_UPS, effect, fix)
