"""Our flags on every training script: the one table of them."""

from __future__ import annotations

from typing import Any

# No flag has a default here: `runtime/options.py` tells "not given" from it, fills it in, and checks. Kohya reads its
# TOML files into the same namespace without converting, so it cannot trust a value to have its type either.
FLAGS: dict[str, dict[str, Any]] = {
    "--enable_ema": {
        "action": "store_true",
        "help": "keep an exponential moving average (EMA) of the trained weights and save it next to them",
    },
    "--ema_decay": {"type": float, "help": "decay of the EMA for each optimizer step (default 0.9995)"},
    "--ema_schedule": {
        "choices": ["debiased", "constant", "warmup", "exp", "power"],
        "help": "how the EMA starts: debiased (default) leaves no share to the start model, constant is the plain EMA",
    },
    "--ema_update_every": {
        "type": int,
        "help": "update the EMA every N optimizer steps, decay compensated (default 1)",
    },
    "--ema_start_step": {"type": int, "help": "leave the first N optimizer steps out of the EMA (default 0)"},
    "--ema_device": {
        "choices": ["auto", "cuda", "cpu"],
        "help": "where the EMA is kept: auto (default) takes the GPU if at least 20 %% of its memory stays free",
    },
    "--ema_dtype": {
        "choices": ["float32", "bfloat16"],
        "help": "type of the EMA (default float32; bfloat16 is rounded stochastically)",
    },
    "--ema_save": {
        "choices": ["beside", "only"],
        "help": "save the EMA as NAME-ema next to the raw weights (default), or only the EMA, under the plain name",
    },
    "--ema_sample": {
        "choices": ["raw", "ema", "both"],
        "help": "weights that sample images are made from (default raw)",
    },
    "--ema_sigma_rel": {"type": float, "help": "relative width of the average for --ema_schedule power, 0 to 0.28"},
    "--ema_exp_beta": {"type": float, "help": "old command lines: selects the schedule exp (0: warmup)"},
    "--ema_save_only_ema_weights": {"action": "store_true", "help": "old command lines: the same as --ema_save only"},
    "--kohya_ext_log_every": {
        "type": int,
        "help": "every N steps, log the effective learning rate and the share of weights that moved (default 0: never)",
    },
}


# Each stays away as a whole where a fork has a flag of the same name: half of it would be read from the fork's flag.
FEATURES = {
    "EMA": tuple(flag for flag in FLAGS if "ema" in flag),
    "telemetry": tuple(flag for flag in FLAGS if "ema" not in flag),
}
