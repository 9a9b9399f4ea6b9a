"""Adapters by the names of their tensors: which kind a file holds, which tensors make a module. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LORA = "LoRA"
DORA = "DoRA"
FULL = "full difference"
TUCKER = "lora_mid"

# the kind, and what only its keys have; the order decides where a file has several
_KINDS = (
    ("LoHa", re.compile(r"\.hada_[wt][12]")),
    ("LoKr", re.compile(r"\.lokr_[wt][12]")),
    ("BOFT", re.compile(r"\.boft_[rs]", re.IGNORECASE)),
    ("OFT", re.compile(r"\.oft_(?:blocks|diag|r)\b", re.IGNORECASE)),
    ("GLoRA", re.compile(r"\.(?:a1|a2|b1|b2)\.weight$")),
    ("IA3", re.compile(r"\.(?:on_input$|ia3_l\b)")),
    ("VeRA", re.compile(r"\bvera_(?:lambda_|[AB]\b)")),
    (DORA, re.compile(r"\.(?:dora_scale$|lora_magnitude_vector\b)")),
    (LORA, re.compile(r"lora_(?:down|up|A|B|embedding_A|embedding_B)\b|[._]lora\.(?:down|up)\b|lora_linear_layer\.")),
    (FULL, re.compile(r"\.(?:diff|diff_b|set_weight|w_norm|b_norm)$")),
)
# a GLoRA module has all four; one of them alone is a name that any network may use
_GLORA_PARTS = ("a1", "a2", "b1", "b2")

# how the keys of adapters begin: PEFT's of every method, sd-scripts' small ControlNet
_STARTS = ("base_model.model.", "lllite_")

# (key of the down factor, key of the up factor) by spelling; {0} is the module, {1} what follows
_SPELLINGS = (
    (re.compile(r"(.+)\.lora_down((?:\.weight)?)"), "{0}.lora_up{1}"),  # sd-scripts
    (
        re.compile(r"(.+)\.lora_A((?:\.(?!bias$)[^.]+)?(?:\.weight)?)"),
        "{0}.lora_B{1}",
    ),  # PEFT, with or without its name
    (re.compile(r"(.+)\.lora_embedding_A((?:\.[^.]+)?)"), "{0}.lora_embedding_B{1}"),
    (re.compile(r"(.+)\.lora\.down((?:\.weight)?)"), "{0}.lora.up{1}"),  # diffusers
    (re.compile(r"(.+)\.lora_linear_layer\.down(\.weight)"), "{0}.lora_linear_layer.up{1}"),
    (re.compile(r"(.+)_lora\.down(\.weight)"), "{0}_lora.up{1}"),  # diffusers' attention processors
)
# ControlLoRA, XLabs: without the other half these are names that any network may use
_BARE = re.compile(r"(.+)\.down((?:\.weight)?)"), "{0}.up{1}"
_HALF = re.compile(
    r"\.lora_(?:down|up|A|B|embedding_A|embedding_B)\b|[._]lora\.(?:down|up)\b|\.lora_linear_layer\.(?:down|up)\b"
)
_BIAS = ".bias"
# what the keys of one network start with; a loader makes one adapter of each
_COMPONENT = re.compile(r"(lora_te[123]?|lora_unet|lora_prior_unet|lora_prior_te|lora_transformer|lycoris)_|([^.]+)\.")
_COMPONENTS = frozenset(
    (
        "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior",
        "text_encoders", "diffusion_model", "controlnet", "connectors", "audio_dit",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Factors:
    """The keys of one module. kohya: in sd-scripts' spelling, where a `.alpha` next to the factors is usual."""

    module: str
    up: str
    down: str
    kohya: bool

    @property
    def alpha(self) -> str:
        """The key of the scale times the rank; a file need not have it."""
        return f"{self.module}.alpha"

    @property
    def mid(self) -> str:
        """The core of a Tucker decomposition, which LyCORIS makes for convolutions."""
        return f"{self.module}.lora_mid.weight"

    @property
    def bias(self) -> str:
        """What PEFT adds to the bias, scaled like the product."""
        return self.up.removesuffix(".weight") + _BIAS


def kinds(keys: Iterable[str]) -> dict[str, str]:
    """The kinds of adapters in a file.

    Args:
        keys: the names of its tensors.

    Returns:
        Kind, such as `LORA` -> the first key, in alphabetical order, that shows it.
    """
    names = frozenset(keys)
    found: dict[str, str] = {}
    for kind, sign in _KINDS:
        shown = sorted(key for key in names if sign.search(key))
        if kind == "GLoRA":
            shown = [key for key in shown if _whole_glora(key, names)]
        if shown:
            found[kind] = shown[0]
    if LORA not in found and (bare := next((key for key in sorted(names) if _bare(key, names)), None)):
        found[LORA] = bare
    return found


def is_adapter(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Whether a file is an adapter of any kind, by the names of its tensors or by its metadata."""
    names = frozenset(keys)
    stated = metadata.get("modelspec.architecture", "").endswith("/lora") or "ss_network_module" in metadata
    return stated or bool(kinds(names)) or any(key.startswith(_STARTS) for key in names)


def factors(key: str, keys: frozenset[str]) -> Factors | None:
    """The module whose down factor `key` is; None for every other tensor. The up factor may be missing in `keys`."""
    for number, (pattern, up) in enumerate(_SPELLINGS):
        if match := pattern.fullmatch(key):
            return Factors(match[1], up.format(match[1], match[2]), key, number == 0)
    return _bare(key, keys)


def is_half(key: str) -> bool:
    """Whether `key` names a factor of a LoRA, up or down (no bias)."""
    return bool(_HALF.search(key)) and not key.endswith(_BIAS)


def component(module: str) -> str:
    """The network that a module belongs to: unet, lora_te1, text_encoder_2; "" where the keys do not tell."""
    match = _COMPONENT.match(module)
    if match is None:
        return ""
    return match[1] or (match[2] if match[2] in _COMPONENTS else "")


def _bare(key: str, keys: frozenset[str]) -> Factors | None:
    pattern, up = _BARE
    match = pattern.fullmatch(key)
    if not match or (other := up.format(match[1], match[2])) not in keys:
        return None
    return Factors(match[1], other, key, False)


def _whole_glora(key: str, keys: frozenset[str]) -> bool:
    module = key.rsplit(".", 2)[0]
    return all(f"{module}.{part}.weight" in keys for part in _GLORA_PARTS)
