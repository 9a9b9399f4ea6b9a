"""Kohya's own optimizers and schedulers: the arguments of each, over all versions that releases have pinned.

sd-scripts hands `--optimizer_args` to the constructor as they are; a name that it does not have ends the run there.
"""

from __future__ import annotations

_BETAS = ("betas", "eps", "weight_decay")
_TORCH = ("maximize", "foreach", "differentiable", "fused")
_BNB = ("args", "min_8bit_size", "percentile_clipping", "block_wise")
_BNB_ADAMW = (*_BETAS, "amsgrad", "optim_bits", *_BNB, "is_paged")
_BNB_LION = ("betas", "weight_decay", "optim_bits", *_BNB, "is_paged")
_DADAPT = ("weight_decay", "log_every", "d0")
_DADAPT_ADAM = (*_BETAS, *_DADAPT, "decouple", "use_bias_correction", "growth_rate", "fsdp_in_use")
_DADAPT_ADAN = (*_BETAS, *_DADAPT, "no_prox", "growth_rate")
_SCHEDULE_FREE = ("weight_decay", "r", "weight_lr_power", "foreach")

# By the name that --optimizer_type has, in lower case.
ARGUMENTS: dict[str, frozenset[str]] = {
    name: frozenset(arguments)
    for name, arguments in {
        "adamw": (*_BETAS, "amsgrad", "capturable", *_TORCH),
        "adamw8bit": _BNB_ADAMW,
        "pagedadamw": _BNB_ADAMW,
        "pagedadamw8bit": _BNB_ADAMW,
        "pagedadamw32bit": _BNB_ADAMW,
        "lion": ("betas", "weight_decay", "use_triton", "decoupled_weight_decay"),
        "lion8bit": _BNB_LION,
        "pagedlion8bit": _BNB_LION,
        "sgdnesterov": ("momentum", "dampening", "weight_decay", *_TORCH),
        "sgdnesterov8bit": ("momentum", "dampening", "weight_decay", *_BNB),
        "adafactor": (
            *("eps", "clip_threshold", "decay_rate", "beta1", "weight_decay"),
            *("scale_parameter", "relative_step", "warmup_init"),
        ),
        "prodigy": (
            *(*_BETAS, "beta3", "decouple", "use_bias_correction", "safeguard_warmup"),
            *("d0", "d_coef", "growth_rate", "fsdp_in_use", "slice_p"),
        ),
        "dadaptation": _DADAPT_ADAM,
        "dadaptadampreprint": _DADAPT_ADAM,
        "dadaptadam": _DADAPT_ADAM,
        "dadaptadagrad": (*_DADAPT, "momentum", "eps", "growth_rate"),
        "dadaptadan": _DADAPT_ADAN,
        "dadaptadanip": _DADAPT_ADAN,
        "dadaptlion": (*_DADAPT, "betas", "fsdp_in_use"),
        "dadaptsgd": (*_DADAPT, "momentum", "growth_rate", "fsdp_in_use"),
        "adamwschedulefree": (*_SCHEDULE_FREE, "betas", "eps", "warmup_steps"),
        "radamschedulefree": (*_SCHEDULE_FREE, "betas", "eps", "silent_sgd_phase"),
        "sgdschedulefree": (*_SCHEDULE_FREE, "momentum", "warmup_steps"),
    }.items()
}

# Given by the script itself; once more among the arguments, the constructor gets them twice.
GIVEN: dict[str, frozenset[str]] = {
    name: frozenset({"lr", "nesterov"} if name.startswith("sgdnesterov") else {"lr"}) for name in ARGUMENTS
}

# The arguments that are switches; all others of the above are numbers, or several of them.
SWITCHES = frozenset(
    {
        *(*_TORCH, "amsgrad", "capturable", "block_wise", "is_paged", "use_triton", "decoupled_weight_decay"),
        *("decouple", "use_bias_correction", "safeguard_warmup", "fsdp_in_use", "no_prox"),
        *("scale_parameter", "relative_step", "warmup_init"),
    }
)
# bitsandbytes itself reads the numbers in a text for these, in its optimizers with two states only.
READS_TEXTS = {name: frozenset({"betas"}) for name in ("adamw8bit", "pagedadamw", "pagedadamw8bit", "pagedadamw32bit")}
UNTOLD = frozenset({"args"})  # an object of bitsandbytes

# Those that find their rate and end the run where two parts of a model have different ones, 0 aside.
ONE_RATE = frozenset({"prodigy", "dadaptation", "dadaptadampreprint", "dadaptadam", "dadaptlion", "dadaptsgd"})

# Classes of torch.optim, where a name without a dot that sd-scripts does not know is looked for, in this very spelling.
OF_TORCH = frozenset(
    {
        "ASGD",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "LBFGS",
        "Muon",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
        "SparseAdam",
    }
)

# What --lr_scheduler_args may name for the schedulers of diffusers and transformers; the script gives the others.
SCHEDULERS_ARGUMENTS: dict[str, frozenset[str]] = {
    "constant": frozenset({"last_epoch"}),
    "constant_with_warmup": frozenset({"last_epoch"}),
    "linear": frozenset({"last_epoch"}),
    "cosine": frozenset({"last_epoch", "num_cycles"}),
    "cosine_with_restarts": frozenset({"last_epoch"}),
    "polynomial": frozenset({"last_epoch", "lr_end"}),
}
