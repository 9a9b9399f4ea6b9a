"""The kind of network that a training names: does it suit the model, and does the installed LyCORIS take its words?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kohya_ext.presets.argument_faults import ArgumentFault
from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.release import REQUIREMENTS
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.pysource.sources import Sources

# The networks of one family, and the beginning of the scripts that can train them.
FAMILY_NETWORKS = {
    "networks.lora_flux": "flux_",
    "networks.oft_flux": "flux_",
    "networks.lora_sd3": "sd3_",
    "networks.lora_lumina": "lumina_",
    "networks.lora_anima": "anima_",
    "networks.lora_hunyuan_image": "hunyuan_",
}
WITH_CONVOLUTIONS = ("train_network.py", "sdxl_train_network.py")  # the scripts whose models have 3x3 convolutions
_WHOLE_PRESETS = ("full", "unet-convblock-only")  # of LyCORIS, those that train these convolutions
_PIN = re.compile(r"^lycoris[-_]lora\s*==\s*([\d.]+)", re.MULTILINE)
KIND = ("LoRA_type", "network_args")
Version = tuple[int, ...]


@dataclass(frozen=True)
class _Defect:
    """Versions of LyCORIS, from `since` to before `until`, that stop with an algorithm. words: those that do it all
    together; none for the algorithm alone. convolutions: only where layers with 3x3 kernels are trained.
    """

    since: Version
    until: Version
    algorithms: tuple[str, ...]
    words: tuple[str, ...] = ()
    convolutions: bool = False


# Found by training small networks with 1.9.0, 2.0.0, 2.0.2, 2.1.0, 2.2.0, 3.0.0, 3.1.0, 3.2.0, 3.3.0 and 4.1.3.
_DEFECTS = (
    _Defect((1, 9), (2,), ("loha", "lokr"), ("rank_dropout",)),
    _Defect((1, 9), (3,), ("lokr",), ("module_dropout",), convolutions=True),
    _Defect((1, 9), (3, 3), ("loha",), ("module_dropout",), convolutions=True),
    _Defect((2, 0, 2), (3, 3), ("full",), ("rank_dropout",)),
    _Defect((3,), (3, 3), ("full",), ("module_dropout",)),
    _Defect((3,), (5,), ("full",), ("bypass_mode",)),
    _Defect((2, 2), (3,), ("lora", "locon", "loha", "lokr"), ("bypass_mode", "dora_wd")),
    _Defect((2, 2), (3,), ("lokr",), ("bypass_mode",), convolutions=True),
    _Defect((3,), (4,), ("ia3",)),
)


def pinned_lycoris(*places: Sources | None) -> Version | None:
    """The version of LyCORIS that a release installs; None where its requirements do not tell."""
    for place in filter(None, places):
        for path in REQUIREMENTS:
            if found := _PIN.search(place.read(path) or ""):
                return tuple(int(part) for part in found.group(1).split(".") if part)
    return None


def network_faults(training: ScriptRun, lycoris: Version | None) -> Iterator[ArgumentFault]:
    """Why a training of a network stops; nothing for scripts without one. lycoris: the version that is installed."""
    if "network_module" not in training.arguments:
        return
    module = str(training.value("network_module") or "")
    begins = FAMILY_NETWORKS.get(module)
    fix = "choose a LoRA type of the model family, or the check box of its family"
    if not module:
        effect = f"{training.script} gets no --network_module and stops: this release does not know the LoRA type"
        yield ArgumentFault("lora-type", KIND, effect, fix)
    elif begins is not None and not training.script.startswith(begins):
        effect = f"{training.script} cannot train {module}: it belongs to another model family"
        yield ArgumentFault("lora-type", KIND, effect, fix)
    elif module.startswith("lycoris") and lycoris is not None:
        yield from _lycoris(training, lycoris)
    if training.value("dim_from_weights") and not training.value("network_weights"):
        effect = f"{training.script} stops: dim_from_weights takes the sizes of a network from network_weights"
        fix = "name a LoRA file in network_weights, or switch dim_from_weights off"
        yield ArgumentFault("training-stops", ("dim_from_weights",), effect, fix)


def _lycoris(training: ScriptRun, version: Version) -> Iterator[ArgumentFault]:
    words = dict(str(word).replace('"', "").partition("=")[::2] for word in training.value("network_args") or ())
    algorithm = words.get("algo", "lora").lower()
    told: set[str] = set()
    for defect in _DEFECTS:
        fits = defect.since <= version < defect.until and algorithm in defect.algorithms
        fits = fits and all(_on(words.get(name, "")) for name in defect.words) and not told & set(defect.words)
        if not fits or (defect.convolutions and not _convolutions(training, words)):
            continue
        told |= set(defect.words)
        name = ".".join(map(str, version))
        if not defect.words:
            effect = f"{training.script} stops: LyCORIS {name}, which this release installs, does not have {algorithm}"
            yield ArgumentFault("training-stops", KIND, effect, "choose another LoRA type")
            continue
        where = f"{algorithm} on convolutions" if defect.convolutions else algorithm
        both = " and ".join(defect.words)
        effect = f"{training.script} stops: LyCORIS {name}, which this release installs, fails with {both} in {where}"
        fix = f"switch {' or '.join(defect.words)} off" + (", or set conv_dim to 0" if defect.convolutions else "")
        yield ArgumentFault("training-stops", (*defect.words[:1], "network_args"), effect, fix)


def _convolutions(training: ScriptRun, words: Mapping[str, str]) -> bool:
    """Whether layers with 3x3 kernels are trained; False where a preset file decides."""
    size = parse_number(words.get("conv_dim", "1"))
    whole = words.get("preset", "full") in _WHOLE_PRESETS and not training.value("network_train_text_encoder_only")
    return training.script in WITH_CONVOLUTIONS and whole and bool(size)


def _on(text: str) -> bool:
    number = parse_number(text) if text else 0
    return text.strip().lower() == "true" if number is None else bool(number)
