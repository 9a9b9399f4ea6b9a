"""The tensors that a LoRA has no module for: one name for each, whatever file it is in, and the kind of layer."""

from __future__ import annotations

import re

from kohya_ext.lora.layout import Architecture, targets

GROUP = "rest"
VAE_FOLDER = "vae"
BIASES, NORMS, VAE, OTHER = "biases", "norms", "VAE", "other weights"
CONDITIONS = "time and size embeddings"
ENDS = "input and output layers"
TOKENS = "token and position embeddings"
_UNET = "unet"
_PLACES = (
    ("model.diffusion_model.", _UNET),
    ("diffusion_model.", _UNET),
    ("first_stage_model.", VAE_FOLDER),
    ("vae.", VAE_FOLDER),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("cond_stage_model.transformer.", "text_encoder"),
    ("conditioner.embedders.1.model.", "open_clip"),
    ("cond_stage_model.model.", "open_clip"),
)
_NO_WEIGHTS = ("model_ema.", "denoiser.")  # a second copy of the U-Net, which no sampler uses; tables of noise levels
_CONDITIONS = re.compile(
    r"(?:time_embed|time_embedding|time_text_embed|label_emb|add_embedding|class_embedding|(?:time|vector|guidance)_in)\."
)
_ENDS = re.compile(
    r"(?:input_blocks\.0\.0|conv_in|out|conv_out|img_in|txt_in|final_layer|x_embedder|context_embedder|proj_out"
    r"|norm_out)\."
)


def rest_name(key: str, architecture: Architecture, component: str = "") -> str | None:
    """The name by which two models are compared, PLACE/KEY; None for what is not a weight.

    component: as in `layout.targets`, and `vae`. A bias goes by the module it belongs to, where a LoRA knows that one.
    """
    if key.startswith(_NO_WEIGHTS) or (not component and "." not in key):  # noise schedules and marks have no dot
        return None
    if key.endswith(".bias") and component != VAE_FOLDER:
        owners = targets(f"{key.removesuffix('.bias')}.weight", architecture, component)
        if len(owners) == 1 and owners[0].pieces == 1:
            return f"{owners[0].group}/{owners[0].name}.bias"
    place, rest = component, key
    if not component:
        place, rest = next(
            ((to, key.removeprefix(start)) for start, to in _PLACES if key.startswith(start)), (_UNET, key)
        )
    return f"{place}/{rest.removeprefix('text_model.') if place.startswith('text') else rest}"


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """What kind of layer the tensor `name` (of `rest_name`) belongs to."""
    place, _, key = name.partition("/")
    if place == VAE_FOLDER:
        return VAE
    if key.endswith((".bias", "_bias")):
        return BIASES
    if len(shape) == 1:
        return NORMS
    if place == _UNET:
        return CONDITIONS if _CONDITIONS.match(key) else ENDS if _ENDS.match(key) else OTHER
    return TOKENS if "embedding" in key else OTHER
