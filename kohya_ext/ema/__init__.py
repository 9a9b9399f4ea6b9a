"""The exponential moving average of weights: schedules, the shadow, its files. Knows torch and safetensors only."""

from kohya_ext.ema.schedules import Schedule, constant, debiased, describe, exp, power, warmup
from kohya_ext.ema.shadow import Shadow

__all__ = ["Schedule", "Shadow", "constant", "debiased", "describe", "exp", "power", "warmup"]
