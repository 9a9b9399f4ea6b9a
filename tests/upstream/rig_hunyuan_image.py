"""HunyuanImage of the rig's size: narrow blocks, and encoders of text and images that only give the right shapes.

Depth is as upstream's: 20 double and 40 single blocks, enough to swap some. `write` makes its file, `shrink` makes the
modules of sd-scripts take it.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

HEADS, ROPE = 2, [8, 8]  # rotary dimensions of a head, the first for rows, the second for columns
WIDTH = HEADS * sum(ROPE)
WORDS, GLYPHS, LATENTS, REDUCTION = 3584, 1472, 64, 32  # what the model takes: widths, and pixels a latent


def fixed(value: Any) -> property:
    """An attribute that stays as it is, whatever the model's `__init__` wants it to be."""
    return property(lambda self: value, lambda self, _: None)


def narrow(models: Any) -> type:
    """The model's own class, with narrow blocks."""
    own = {"hidden_size": fixed(WIDTH), "heads_num": fixed(HEADS), "rope_dim_list": fixed(ROPE)}
    return type("NarrowTransformer", (models.HYImageDiffusionTransformer,), own)


def write(file: Path) -> None:
    """Random weights of the model. The working directory is a checkout of sd-scripts."""
    import library.hunyuan_image_models as models
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = narrow(models)()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, str(file))


def shrink() -> None:
    """Make sd-scripts build and load the narrow model, and stand-ins for what encodes text and images."""
    import library.hunyuan_image_models as models
    import library.hunyuan_image_text_encoder as text
    import library.hunyuan_image_vae as vae
    import library.strategy_base as strategies

    models.HYImageDiffusionTransformer = narrow(models)
    text.load_qwen2_5_vl = lambda *_, **__: (None, _encoder(WORDS))
    text.load_byt5 = lambda *_, **__: (None, _encoder(GLYPHS))
    vae.load_vae = lambda *_, **__: _images()
    strategies.TokenizeStrategy._load_tokenizer = lambda *_, **__: _tokens


def _tokens(texts: Any, max_length: int, **_: Any) -> Any:
    """A number for each letter, as many as the longest of the texts has."""
    import torch

    texts = [texts] if isinstance(texts, str) else texts
    longest = min(max_length, max(map(len, texts)))
    ids = torch.tensor([[ord(letter) % 97 for letter in one[:longest].ljust(longest)] for one in texts])
    return types.SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


def _encoder(width: int) -> Any:
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(97, width)

        @property
        def device(self) -> Any:
            return self.table.weight.device

        @property
        def dtype(self) -> Any:
            return self.table.weight.dtype

        def forward(self, input_ids: Any, **_: Any) -> Any:
            states = self.table(input_ids)
            return types.SimpleNamespace(hidden_states=[states] * 3)

    torch.manual_seed(1)
    return Encoder().requires_grad_(False)


def _images() -> Any:
    import torch

    class Images(torch.nn.Module):
        """A convolution in the place of the VAE's encoder."""

        def __init__(self) -> None:
            super().__init__()
            self.into = torch.nn.Conv2d(3, LATENTS, REDUCTION, stride=REDUCTION)

        @property
        def device(self) -> Any:
            return self.into.weight.device

        @property
        def dtype(self) -> Any:
            return self.into.weight.dtype

        def encode(self, images: Any) -> Any:
            latents = self.into(images.to(self.dtype))
            return types.SimpleNamespace(sample=lambda: latents)

    torch.manual_seed(2)
    return Images().requires_grad_(False)


if __name__ == "__main__":
    sys.path[0] = ""
    write(Path(sys.argv[1]))
