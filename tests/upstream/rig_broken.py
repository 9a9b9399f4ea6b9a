"""Settings that a training script refuses, as users report them: what upstream says, and the setting at fault."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Broken:
    """flags: on top of settings that train. says: words of upstream's. fields: any of them names the fault.

    images: whether there are any.
    """

    flags: tuple[str, ...]
    says: str
    fields: tuple[str, ...]
    images: bool = True


OPTIMIZER = Broken(("--optimizer_type=AdamX",), "AdamX", ("optimizer_type",))
OPTIMIZER_ARGUMENT = Broken(("--optimizer_args", "nonsense=1"), "nonsense", ("optimizer_args",))
SCHEDULER = Broken(("--lr_scheduler=cosinus",), "cosinus", ("lr_scheduler",))
RESOLUTION = Broken(("--resolution=256x256",), "256x256", ("resolution",))
BUCKETS = Broken(
    ("--min_bucket_reso=512", "--max_bucket_reso=512"), "min_bucket_reso", ("min_bucket_reso", "resolution")
)
PRECISION = Broken(("--mixed_precision=fp17",), "invalid choice: 'fp17'", ("mixed_precision",))
AUGMENTED = Broken(("--cache_latents", "--color_aug"), "color_aug", ("color_aug", "cache_latents"))
FULL_HALF = Broken(("--full_bf16",), "full_bf16", ("full_bf16", "mixed_precision"))
UNKNOWN = Broken(("--no_such_flag=1",), "unrecognized arguments: --no_such_flag=1", ("no_such_flag",))
NO_IMAGES = Broken((), "", ("train_data_dir", "in_json"), images=False)
SHUFFLED = Broken(
    ("--cache_text_encoder_outputs", "--shuffle_caption"), "shuffle", ("shuffle_caption", "cache_text_encoder_outputs")
)
TRAINED_TEXT = Broken(
    ("--cache_text_encoder_outputs", "--train_text_encoder"),
    "cache_text_encoder_outputs", ("cache_text_encoder_outputs", "train_text_encoder"),
)  # fmt: skip
FUSED = Broken(("--fused_backward_pass",), "fused_backward_pass", ("fused_backward_pass", "optimizer_type"))
FUSED_ACCUMULATED = Broken(
    ("--fused_backward_pass", "--gradient_accumulation_steps=2"),
    "gradient_accumulation_steps", ("gradient_accumulation_steps", "fused_backward_pass"),
)  # fmt: skip
NETWORK = Broken(("--network_module=networks.lorra",), "networks.lorra", ("network_module",))

ALL = {
    "optimizer": OPTIMIZER, "optimizer argument": OPTIMIZER_ARGUMENT, "scheduler": SCHEDULER,
    "resolution": RESOLUTION, "buckets": BUCKETS, "precision": PRECISION, "augmented": AUGMENTED,
    "full bf16": FULL_HALF, "unknown flag": UNKNOWN, "no images": NO_IMAGES,
}  # fmt: skip
TAKEN = {"fine_tune": {"full bf16"}}  # what a script does not refuse: this one ignores it
OF: dict[str, dict[str, Broken]] = {
    "sdxl_train": {"shuffled": SHUFFLED, "trained text": TRAINED_TEXT, "fused": FUSED},
    "sdxl_train_network": {"shuffled": SHUFFLED, "network": NETWORK},
    "fine_tune": {},
    "train_network": {"network": NETWORK},
    "flux_train": {"shuffled": SHUFFLED, "fused": FUSED},
    "sd3_train": {"shuffled": SHUFFLED, "fused": FUSED},
    "lumina_train": {"shuffled": SHUFFLED, "fused": FUSED},
}


def broken(script: str) -> dict[str, Broken]:
    """Everything that a script is tried with."""
    return {name: one for name, one in {**ALL, **OF[script]}.items() if name not in TAKEN.get(script, ())}
