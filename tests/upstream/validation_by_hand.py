"""The validation loss of a saved SDXL file, computed without kohya_ext: `validation_by_hand.py MODEL FOLDER TIMESTEPS`.

To be run in a checkout of sd-scripts, by its environment. The images are 256 x 256, so that nothing is resized; the
loss is sdxl_train's with --min_snr_gamma 5. Noise and timesteps follow the rule in the docs: all random numbers from
the first 8 bytes of sha256("SEED/FOLDER/NAME/PART"), the place within the part from its bytes 8 to 13. Prints the mean.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, ".")
TOKENIZERS, SCALE, GAMMA, LENGTH = sys.argv[4], 0.13025, 5.0, 75


def models(path: str) -> Any:
    from library import sdxl_model_util

    version = sdxl_model_util.MODEL_VERSION_SDXL_BASE_V1_0
    return sdxl_model_util.load_models_from_sdxl_checkpoint(version, path, "cpu", torch.float32)[:4]


def encoder_of_texts(te1: Any, te2: Any) -> Any:
    """A function of a caption: hidden states of both encoders, and the pooled output of the second."""
    try:
        from library import strategy_sdxl
    except ImportError:  # before September 2024
        from library import sdxl_train_util, train_util

        args = type("Args", (), {"tokenizer_cache_dir": TOKENIZERS, "max_token_length": None})
        one, two = sdxl_train_util.load_tokenizers(args)

        def encode_by_functions(text: str) -> Any:
            whole = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
            words = [tokenizer(text, **whole).input_ids for tokenizer in (one, two)]
            return train_util.get_hidden_states_sdxl(77, words[0][None], words[1][None], one, two, te1, te2, None)

        return encode_by_functions
    tokenize = strategy_sdxl.SdxlTokenizeStrategy(LENGTH, TOKENIZERS)
    encode = strategy_sdxl.SdxlTextEncodingStrategy()
    return lambda text: encode.encode_tokens(tokenize, [te1, te2, te2], tokenize.tokenize(text))


def snr(timestep: int) -> tuple[float, float]:
    """Signal over noise, and the share of the signal."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    kept = torch.cumprod(1 - betas, 0)[timestep]
    return float(kept / (1 - kept)), float(kept)


@torch.no_grad()
def main() -> None:
    from library import sdxl_train_util

    te1, te2, vae, unet = models(sys.argv[1])
    encode = encoder_of_texts(te1, te2)
    parts, means = int(sys.argv[3]), []
    for path in sorted(Path(sys.argv[2]).glob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"), np.uint8)).permute(2, 0, 1)
        image = (pixels.float() / 255 - 0.5) / 0.5
        states1, states2, pooled = encode(path.with_suffix(".txt").read_text().strip())
        size, corner = torch.tensor([[256, 256]]), torch.tensor([[0, 0]])
        about = torch.cat([pooled, sdxl_train_util.get_size_embeddings(size, corner, size, torch.device("cpu"))], 1)
        losses = []
        for part in range(parts):
            digest = hashlib.sha256(f"0/{path.parent.name}/{path.name}/{part}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big") % 2**31)
            place = (int.from_bytes(digest[8:14], "big") + 0.5) / 2**48
            latents = vae.encode(image[None]).latent_dist.sample() * SCALE
            noise = torch.randn_like(latents)
            timestep = int((part + place) / parts * 1000)
            ratio, kept = snr(timestep)
            noisy = kept**0.5 * latents + (1 - kept) ** 0.5 * noise
            guess = unet(noisy, torch.tensor([timestep]), torch.cat([states1, states2], 2), about)
            losses.append(float((guess - noise).square().mean() * min(ratio, GAMMA) / ratio))
        means.append(sum(losses) / len(losses))
    print(json.dumps(sum(means) / len(means)))


main()
