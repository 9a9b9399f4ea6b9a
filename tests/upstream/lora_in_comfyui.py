"""Run inside of a ComfyUI checkout: what its own loader makes of LoRA files.

    PYTHONPATH=<ComfyUI> python lora_in_comfyui.py JOBS.json RESULTS.pt

A job is [family, file]; a result {"unloaded": keys that the loader warned of, "deltas": {weight: what is added to it}}.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

jobs_path, results_path = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

META = {"device": torch.device("meta"), "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
UNET = {
    "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False, "in_channels": 4,
    "model_channels": 32, "num_res_blocks": [2, 2, 2], "use_temporal_attention": False,
    "use_temporal_resblock": False, "num_head_channels": 16,
}  # fmt: skip
SDXL = {
    **UNET, "num_classes": "sequential", "adm_in_channels": 64, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "channel_mult": [1, 2, 4], "transformer_depth_middle": 10, "use_linear_in_transformer": True, "context_dim": 64,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip
SD1 = {
    **UNET, "num_res_blocks": [2, 2, 2, 2], "adm_in_channels": None, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 64,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 32, "mlp_ratio": 4.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip


def network(family: str) -> tuple[type, Any, dict[str, Any]]:
    """(class of the model, its network without weights, its configuration)."""
    base = comfy.model_base
    if family in ("sdxl", "sd1"):
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        config = dict(SDXL if family == "sdxl" else SD1)
        return base.SDXL if family == "sdxl" else base.BaseModel, UNetModel(**config, **META), config
    if family == "flux":
        from comfy.ldm.flux.model import Flux, FluxParams

        later: dict[str, Any] = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
        return base.Flux, Flux(**FLUX, **later, **META), FLUX
    if family == "sd3":
        from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

        config = {"depth": 2, "in_channels": 16, "adm_in_channels": 64, "context_embedder_config": {"target":
            "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}}, "num_blocks": 2}  # fmt: skip
        return base.SD3, MMDiT(**config, **META), config
    if family == "lumina":
        from comfy.ldm.lumina.model import NextDiT

        return base.Lumina2, NextDiT(dim=48, n_layers=2, n_heads=3, cap_feat_dim=32, axes_dims=[4, 6, 6], **META), {}
    if family == "wan":
        from comfy.ldm.wan.model import WanModel

        return base.WAN21, WanModel(dim=24, ffn_dim=32, num_heads=2, num_layers=2, **META), {}
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    config = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6)}
    return base.QwenImage, QwenImageTransformer2DModel(**config, **META), config


def text_encoder_names() -> list[str]:
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    return [
        f"clip_{which}.transformer.text_model.encoder.layers.{layer}.{part}.weight"
        for which in "lg" for layer in range(2) for part in parts
    ]  # fmt: skip


class _Holder:
    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        return self._state


def key_map(family: str) -> dict[str, Any]:
    """The loader's own map of LoRA names to weights."""
    kind, net, config = network(family)
    state = {f"diffusion_model.{key}": value for key, value in net.state_dict().items()}
    model: Any = object.__new__(kind)
    torch.nn.Module.__init__(model)
    object.__setattr__(model, "state_dict", lambda: state)
    object.__setattr__(model, "model_config", type("Config", (), {"unet_config": config}))
    names = comfy.lora.model_lora_keys_unet(model, {})
    encoders = text_encoder_names()
    if family == "sd1":
        encoders = [name for name in encoders if name.startswith("clip_l")]
    return dict(comfy.lora.model_lora_keys_clip(_Holder(dict.fromkeys(encoders)), names))


class Missing(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.keys.append(record.getMessage())


def deltas(patches: dict[Any, Any]) -> dict[str, torch.Tensor]:
    found = {}
    for target, patch in patches.items():
        if isinstance(patch, tuple):
            found[str(target)] = patch[1][0].double()
            continue
        up, down, mid = patch.weights[0], patch.weights[1], patch.weights[3]
        shape = (up.shape[0], down.shape[1], *(mid.shape[2:] if mid is not None else down.shape[2:]))
        zeros = torch.zeros(shape, dtype=torch.float64)
        found[str(target)] = patch.calculate_weight(zeros, str(target), 1.0, 1.0, None, lambda a: a, torch.float64)
    return found


def main() -> None:
    with open(jobs_path) as file:  # noqa: PTH123
        jobs = json.load(file)
    maps: dict[str, Any] = {}
    results = []
    for family, path in jobs:
        maps[family] = maps.get(family) or key_map(family)
        missing = Missing()
        logging.getLogger().addHandler(missing)
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(path)), maps[family])
        logging.getLogger().removeHandler(missing)
        results.append({"unloaded": missing.keys, "deltas": deltas(patches)})
    torch.save(results, results_path)


main()
