"""`--kohya_ext_log_every N`: what the optimizer does to the weights, in Kohya's own logs; and what AdaCoor skipped.

Kohya hands its losses to the accelerator's trackers right after each step, by ways that differ from release to release.
All of them end in a tracker's `log`, so that is where our figures join: same tracker, same step.

Gradient elements that AdaCoor skipped because they were not finite are reported with each checkpoint and at the end,
also without that flag. Their count may lie on a GPU: it is read where the run waits for the disk anyway, never within a
step.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime import averaging
from kohya_ext.runtime.run import is_main_process, run, say, stop

if TYPE_CHECKING:
    from kohya_ext.optim.update_stats import MovementMeter


PREFIX = "kohya_ext/"


class Telemetry:
    """The measurements of one run, over all its optimizers."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._meters: list[tuple[Any, MovementMeter]] = []
        self._latest: dict[str, float] = {}
        self._serial = 0

    def follow(self, optimizer: Any) -> None:
        """Measure `optimizer` from its first step on."""
        from kohya_ext.optim.update_stats import MovementMeter

        self._meters.append((optimizer, MovementMeter(optimizer, self.every)))

    def continue_from(self, step: int) -> None:
        """Count as if `step` steps had been seen."""
        for _, meter in self._meters:
            meter.continue_from(step)

    def around(self, step_param: Callable[..., None]) -> Callable[..., None]:
        """Fused backward: the same `step_param`, measured."""

        def measured(parameter: Any, group: dict[str, Any]) -> None:
            meter = next(meter for _, meter in self._meters if meter.knows(parameter))
            meter.before(parameter)
            step_param(parameter, group)
            meter.after(parameter)

        return measured

    def join(self, trackers: list[Any]) -> None:
        """Let our figures join whatever these trackers log next."""
        for tracker in trackers:
            tracker.log = self._joined(tracker.log)

    def _joined(self, log: Callable[..., Any]) -> Callable[..., Any]:
        seen = 0

        def log_with_ours(values: Mapping[str, Any], *rest: Any, **named: Any) -> Any:
            nonlocal seen
            if values and is_main_process():
                self._look()
                if seen != self._serial:  # each tracker gets them once
                    seen = self._serial
                    values = {**values, **self._latest}
            return log(values, *rest, **named)

        return log_with_ours

    def _look(self) -> None:
        """Take what the meters have, if they have something new."""
        fresh: dict[str, float] = {}
        groups = 0
        for optimizer, meter in self._meters:
            for found in meter.take():
                name = f"group{groups + found.group}"
                if math.isfinite(found.effective_lr):
                    fresh[f"{PREFIX}effective_lr/{name}"] = found.effective_lr
                fresh[f"{PREFIX}moved/{name}"] = found.moved
                fresh[f"{PREFIX}update_rms/{name}"] = found.update
                fresh[f"{PREFIX}gradient_rms/{name}"] = found.gradient
            groups += len(optimizer.param_groups)
        if not fresh:
            return
        counts = [optimizer for optimizer, _ in self._meters if hasattr(optimizer, "skipped")]
        if counts:
            fresh[f"{PREFIX}skipped_elements"] = float(sum(optimizer.skipped for optimizer in counts))
            fresh[f"{PREFIX}skipped_steps"] = float(max(optimizer.skipped_steps for optimizer in counts))
        average = averaging.current()
        if average is not None:
            fresh.update({PREFIX + name: value for name, value in average.health().items()})
        self._latest = fresh
        self._serial += 1


def require_logs(args: argparse.Namespace, every: int) -> None:
    """Stop the run where measurements were asked for and would be logged nowhere."""
    if every and not getattr(args, "logging_dir", None) and not getattr(args, "log_with", None):
        stop(
            "--kohya_ext_log_every writes into Kohya's logs, and there are none: add --logging_dir, or remove this flag"
        )


def begin(accelerator: Any, every: int) -> None:
    """A run starts that measures every `every`-th step, 0 for none."""
    if not every:
        return
    telemetry = run.telemetry = Telemetry(every)
    init_trackers = accelerator.init_trackers

    def init_trackers_and_join(*given: Any, **named: Any) -> Any:
        result = init_trackers(*given, **named)
        telemetry.join(accelerator.trackers)
        return result

    accelerator.init_trackers = init_trackers_and_join


def follow(optimizer: Any) -> None:
    """Measure `optimizer`, if this run measures. All processes make the same steps, so one measures."""
    if run.telemetry is not None and is_main_process():
        run.telemetry.follow(optimizer)


def continue_from(step: int) -> None:
    """A resumed run has made `step` optimizer steps: measure at the same ones as an uninterrupted run."""
    if run.telemetry is not None:
        run.telemetry.continue_from(step)


def around(step_param: Callable[..., None]) -> Callable[..., None]:
    """A `step_param` of a fused backward pass, measured if this run measures."""
    telemetry: Telemetry | None = run.telemetry
    return step_param if telemetry is None or not is_main_process() else telemetry.around(step_param)


def count_skips(optimizer: Any) -> None:
    """Remember the count of `optimizer`, if it keeps one; the optimizer itself may go."""
    count = getattr(optimizer, "skip_count", None)
    if count is None:
        return
    if not run.skip_counts:
        atexit.register(_report_skips_at_exit)
    run.skip_counts.append(count)


def report_skips() -> None:
    """Say how many there were so far, if there are more than last time."""
    elements = sum(count.total() for count in run.skip_counts)
    if elements <= run.skips_told:
        return
    run.skips_told = elements
    whole = max(count.whole_steps() for count in run.skip_counts)
    steps = f", {whole} whole steps among them" if whole else ""
    say(f"AdaCoor skipped {elements} gradient elements so far that were not finite{steps}")


def _report_skips_at_exit() -> None:
    with contextlib.suppress(Exception):  # the device may have failed, and that is what ends the run
        report_skips()
