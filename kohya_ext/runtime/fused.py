"""`--fused_backward_pass`: a parameter is stepped, averaged and freed as soon as its gradient is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime import averaging, telemetry

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average


def patch_fused_backward(original: Callable[..., Any], optimizer: Any) -> Any:
    """Kohya's `patch_adafactor_fused(optimizer)`: gives the (accelerated) optimizer a `step_param(tensor, group)`."""
    inner = getattr(optimizer, "optimizer", optimizer)
    result = None
    if hasattr(inner, "step_param"):
        # AdaCoor's own looks the group up again: the one in the caller's hand is stale once a state has been loaded
        optimizer.step_param = inner.step_param
    else:
        result = original(optimizer)
    optimizer.step_param = telemetry.around(optimizer.step_param)
    average = averaging.current()
    if average is not None:
        optimizer.step_param = _then_average(optimizer.step_param, average)
    return result


def _then_average(step_param: Callable[..., None], average: Average) -> Callable[..., None]:
    def step_and_average(parameter: Any, group: dict[str, Any]) -> None:
        average.before_step_of(parameter)
        step_param(parameter, group)
        average.after_step_of(parameter)

    return step_and_average
