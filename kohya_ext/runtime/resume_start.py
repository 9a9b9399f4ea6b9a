"""Where an exact resume begins: what cannot work is refused; the accelerator saves and loads complete states."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import Any

from kohya_ext.resume import record
from kohya_ext.resume.command import launch_of
from kohya_ext.runtime import loader, rng, safe_save
from kohya_ext.runtime.interruption import Interruption
from kohya_ext.runtime.options import ResumeOptions
from kohya_ext.runtime.resuming import ExactResume
from kohya_ext.runtime.run import run, say, stop, warn_again_at_end
from kohya_ext.runtime.training_script import TrainingScript, can_be_entered
from kohya_ext.spec.flags import EXACT_RESUME
from kohya_ext.spec.outputs import SAVING_PREFIX

# upstream's own ways to begin in the middle
_THEIRS = ("initial_epoch", "initial_step", "skip_until_initial_step")
# settings that a resumed run may change without a word
_FREE = (
    "save_",
    "sample_",
    "log",
    "wandb",
    "huggingface",
    "metadata_",
    "kohya_ext_",
    "output_",
    "resume",
    "config_file",
)
_ALSO_FREE = ("max_train_steps", "max_train_epochs", "training_comment", "console_log_level")


def check(args: argparse.Namespace) -> TrainingScript:
    """The script's training function. Stops the run where an exact resume cannot work, before a model is loaded."""
    name = EXACT_RESUME.name
    script = TrainingScript.around(sys._getframe())
    if script is None or not can_be_entered(script.frame.f_code):
        stop(
            f"{name} does not know the training loop of {Path(sys.argv[0]).name}: it needs the loops over epochs and "
            "batches that sd-scripts' trainings have. Remove the flag"
        )
    if getattr(args, "seed", None) is None:
        stop(f"{name} needs a seed, without which the images are in another order in every process: add --seed 42")
    if getattr(args, "deepspeed", False) or int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        stop(
            f"{name} works with one process only: Kohya saves the random numbers of the first one, and the others' "
            "cannot be known. Remove the flag, or train on one GPU"
        )
    theirs = next((key for key in _THEIRS if getattr(args, key, None)), None)
    if theirs is not None:
        stop(f"{name} finds the place in the training by itself: remove --{theirs}")
    return script


def begin(args: argparse.Namespace, options: ResumeOptions, accelerator: Any, script: TrainingScript) -> None:
    """A run with an exact resume starts."""
    launch = launch_of(sys.executable, sys.argv, str(Path.cwd()), os.environ)
    interruption = Interruption() if options.save_on_signal else None
    resume = run.resume = ExactResume(args, accelerator, script, launch, record.plain(vars(args)), interruption)
    rng.spare_from_logs()
    loader.insert(loader.RESUME, resume.layer)
    _save_whole_states(accelerator, resume)
    _load_with_record(accelerator, resume)
    _log_unless_still(accelerator, resume)
    if not any(getattr(args, key, None) for key in ("save_state", "save_state_on_train_end")) and interruption is None:
        say(f"{EXACT_RESUME.name} is set, but this run saves no state to resume from: add --save_state")


def _save_whole_states(accelerator: Any, resume: ExactResume) -> None:
    save_state = accelerator.save_state

    @functools.wraps(save_state)
    def save_whole(output_dir: Any = None, *rest: Any, **named: Any) -> Any:
        if output_dir is None:
            return save_state(output_dir, *rest, **named)
        with safe_save.moved_into_place(str(output_dir)) as temporary:
            save_state(temporary, *rest, **named)
            _add_record(resume, Path(temporary), output_dir)
        return str(output_dir)

    accelerator.save_state = save_whole


def _add_record(resume: ExactResume, folder: Path, name: Any) -> None:
    """Write the record; where that fails, the state stays as upstream made it, and training continues."""
    try:
        record.write(resume.record(), folder)
    except Exception as error:
        (folder / record.FILE).unlink(missing_ok=True)
        warn_again_at_end(f"the state {name} cannot be resumed exactly ({type(error).__name__}: {error})")


def _load_with_record(accelerator: Any, resume: ExactResume) -> None:
    load_state = accelerator.load_state

    @functools.wraps(load_state)
    def load_and_continue(input_dir: Any = None, *rest: Any, **named: Any) -> Any:
        folder = Path(str(input_dir))
        origin = _origin(folder, resume)
        result = load_state(input_dir, *rest, **named)
        if origin is not None:
            resume.continue_from(origin)
            _give_its_name(folder)
        return result

    accelerator.load_state = load_and_continue


def _origin(folder: Path, resume: ExactResume) -> record.Record | None:
    if not record.has_record(folder):
        say(
            f"{folder} was saved without {EXACT_RESUME.name} and resumes as upstream does: which images of its epoch "
            "had been trained on, and the random numbers, cannot be known"
        )
        return None
    try:
        origin = record.read(folder)
    except record.RecordError as error:
        stop(f"{error}. Another state of the run may be complete: `kohya-ext resume` finds the last one that is")
    changed = [
        f"{key} {old} -> {resume.settings.get(key)}"
        for key, old in origin.settings.items()
        if resume.settings.get(key) != old and not key.startswith(_FREE) and key not in _ALSO_FREE
    ]
    if changed:
        say(f"settings that have changed since the state was saved: {', '.join(changed)}")
    return origin


def _give_its_name(folder: Path) -> None:
    """A state that a killed process had not yet moved into place is, once it is resumed from."""
    outputs = folder.parent.parent
    if folder.parent.name.startswith(SAVING_PREFIX) and not (outputs / folder.name).exists():
        folder.rename(outputs / folder.name)


def _log_unless_still(accelerator: Any, resume: ExactResume) -> None:
    log = accelerator.log

    @functools.wraps(log)
    def log_unless_still(*args: Any, **named: Any) -> Any:
        return None if resume.nothing_left else log(*args, **named)

    accelerator.log = log_unless_still
