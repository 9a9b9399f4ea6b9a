"""Which training script a file of settings is for: it does not say so, but its settings give it away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kohya_ext.core.errors import UsageError, did_you_mean
from kohya_ext.presets.check import says_nothing
from kohya_ext.presets.network_choice import FAMILY_NETWORKS
from kohya_ext.presets.release import SCRIPTS, SDXL, Release, script_for
from kohya_ext.presets.toml_document import TomlDocument
from kohya_ext.spec.second_gui import FAMILY, TRAINING_TYPE, TRAINING_TYPES

NETWORK_ENDING = "_network.py"
PLAIN_NETWORKS = ("networks.lora", "networks.lora_fa", "networks.dylora", "networks.oft")  # of SD and SDXL only
# Settings that only one kind of script has -> what such scripts are called.
TELLING: tuple[tuple[tuple[str, ...], str], ...] = (
    (("token_string", "init_word", "num_vectors_per_token"), "textual_inversion"),
    (("conditioning_data_dir", "controlnet_model_name_or_path"), "control"),
)
SDXL_WORDS = ("xl", "pony", "illustrious", "noob", "animagine")
SDXL_KEYS = ("learning_rate_te1", "learning_rate_te2", "cache_text_encoder_outputs", "sdxl", "sdxl_no_half_vae")


def script_named(name: str, release: Release) -> str:
    """A script of the release as the user calls it. Raises UsageError."""
    wanted = name.removesuffix(".py") + ".py"
    trainers = release.trainers()
    if wanted in trainers:
        return wanted
    raise UsageError(
        f"{release.name} has no training script {wanted}{did_you_mean(wanted, trainers) or ':'} {', '.join(trainers)}"
    )


def script_of_preset(settings: Mapping[str, Any], release: Release) -> str:
    """The script that a preset as TOML names by its tab and its family of models; "" where it names none."""
    tab = next((one for one in SCRIPTS if TRAINING_TYPES[one] == settings.get(TRAINING_TYPE)), None)
    family = str(settings.get(FAMILY) or "")
    if tab is None or not family:
        return ""
    boxes = {"sdxl": SDXL[0]}
    script = script_for(tab, {boxes.get(family, f"{family}_checkbox"): True})
    return script if release.arguments_of(script) else ""


def script_of(document: TomlDocument, values: Mapping[str, Any], release: Release) -> str:
    """The script that knows the most of the settings that say something, files of programs being full of switches that
    are off; of equals the one for the model that the file speaks of.

    Raises UsageError where the release has no training script.
    """
    candidates = _of_kind(values, release.trainers())
    if not candidates:
        raise UsageError(f"{release.name} has no training script that could read {document.path}")
    sdxl = _speaks_of_sdxl(document, values)
    module = str(values.get("network_module") or "")
    begins = FAMILY_NETWORKS.get(module, "")
    others = tuple(set(FAMILY_NETWORKS.values())) if module in PLAIN_NETWORKS else ()
    telling = [key for key, value in values.items() if not says_nothing(key, value)]

    def fitness(script: str) -> tuple[bool, bool, int, bool, int]:
        known = sum(key in release.arguments_of(script) for key in telling)
        folders = script == "fine_tune.py" and not any(values.get(key) for key in ("in_json", "dataset_config"))
        family = script.startswith(begins) if begins else not script.startswith(others)
        return family, not folders, known, script.startswith("sdxl") is sdxl, -candidates.index(script)

    return max(candidates, key=fitness)


def _of_kind(values: Mapping[str, Any], trainers: list[str]) -> list[str]:
    """The scripts for what is trained: a network, an embedding, a ControlNet or the model."""
    for keys, word in TELLING:
        if any(values.get(key) for key in keys) and (found := [one for one in trainers if word in one]):
            return found
    network = bool(values.get("network_module"))
    others = [one for one in trainers if not any(word in one for _, word in TELLING) and "leco" not in one]
    return [one for one in others if one.endswith(NETWORK_ENDING) is network] or others


def _speaks_of_sdxl(document: TomlDocument, values: Mapping[str, Any]) -> bool:
    named = [
        document.name,
        str(values.get("pretrained_model_name_or_path") or "").replace("\\", "/").rpartition("/")[2],
    ]
    if any(word in name.casefold() for name in named for word in SDXL_WORDS):
        return True
    return any(values.get(key, False) not in ("", None) and values.get(key, False) is not False for key in SDXL_KEYS)
