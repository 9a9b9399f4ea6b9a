"""The exponential moving average of weights: schedules, the shadow, its files. Knows torch and safetensors only."""

from kohya_ext.ema.health import FrozenCheck, FrozenShadowError, relative_distance
from kohya_ext.ema.schedules import Schedule, constant, debiased, describe, exp, power, warmup
from kohya_ext.ema.shadow import Shadow

__all__ = [
    "FrozenCheck",
    "FrozenShadowError",
    "Schedule",
    "Shadow",
    "constant",
    "debiased",
    "describe",
    "exp",
    "power",
    "relative_distance",
    "warmup",
]
