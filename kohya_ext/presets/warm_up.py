"""The warm-up of a fitted preset, where the installed training stops at it."""

from __future__ import annotations

from kohya_ext.presets.check import loaded_form
from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.fit import Fitted
from kohya_ext.presets.launch_command import LaunchCommands
from kohya_ext.presets.loop_faults import WARM_UPS, warm_up_fault
from kohya_ext.presets.release import Release
from kohya_ext.presets.script_run import script_run
from kohya_ext.presets.start import Start, with_numbers


def drop_refused_warm_up(fitted: Fitted, release: Release) -> None:
    """Sets it to 0, which is what the scheduler does without one, and notes it as a step. Nothing where it is taken.

    Releases whose GUI leaves it out of the command, and those whose training does not mind, keep it.
    """
    result = Start(release).of(with_numbers(loaded_form(fitted.values, release), release))
    training = script_run(result, release) if isinstance(result, LaunchCommands) else None
    fault = None if training is None else warm_up_fault(training, release.training)
    if fault is None:
        return
    for key in WARM_UPS:
        value = fitted.values.get(key)
        if parse_number(value or 0):
            fitted.values[key] = 0
            fitted.note("changed", key, value, 0, fault.effect)
