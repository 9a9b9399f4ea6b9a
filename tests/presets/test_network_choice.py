"""Kinds of networks that a release cannot train: another family's, and what its LyCORIS fails with."""

from __future__ import annotations

from typing import Any

import pytest

from kohya_ext.presets.network_choice import KIND, network_faults, pinned_lycoris
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.pysource.arguments import Argument
from kohya_ext.pysource.sources import TextSources

ARGUMENTS = {
    name: Argument(f"--{name}", name, type="bool" if name.startswith("network_train") else "str")
    for name in (
        "network_module",
        "network_args",
        "network_train_text_encoder_only",
        "dim_from_weights",
        "network_weights",
    )
}


def run(*words: str, script: str = "sdxl_train_network.py", **given: Any) -> ScriptRun:
    chosen = {"network_module": "lycoris.kohya", "network_args": list(words), **given}
    return ScriptRun(script, chosen, ARGUMENTS)


def told(training: ScriptRun, version: tuple[int, ...] | None) -> list[str]:
    return [one.rule if one.names == KIND else one.names[0] for one in network_faults(training, version)]


OLD, MIDDLE, NEW = (2, 0, 2), (2, 2, 0), (3, 2, 0)


@pytest.mark.parametrize(
    ("words", "version", "expected"),
    [
        (("algo=lokr", "conv_dim=8", "module_dropout=0.1", "preset=full"), OLD, ["module_dropout"]),
        (("algo=lokr", "conv_dim=8", "module_dropout=0.1"), MIDDLE, ["module_dropout"]),
        (("algo=lokr", "conv_dim=8", "module_dropout=0.1"), NEW, []),
        (("algo=loha", "conv_dim=8", 'module_dropout="0.1"'), NEW, ["module_dropout"]),
        (("algo=loha", "conv_dim=8", "module_dropout=0.1"), (3, 4, 0), []),
        (("algo=loha", "module_dropout=0.1"), OLD, ["module_dropout"]),  # conv_dim is then that of the other layers
        (("algo=loha", "conv_dim=0", "module_dropout=0.1"), OLD, []),
        (("algo=loha", "conv_dim=8", "module_dropout=0"), OLD, []),
        (("algo=loha", "conv_dim=8", "module_dropout=0.1", "preset=attn-mlp"), OLD, []),
        (("algo=loha", "conv_dim=8", "module_dropout=0.1", "preset=/mine.toml"), OLD, []),
        (("algo=locon", "conv_dim=8", "module_dropout=0.1", "rank_dropout=0.1"), OLD, []),
        (("algo=lokr", "rank_dropout=0.1"), (1, 9, 0), ["rank_dropout"]),
        (("algo=lokr", "rank_dropout=0.1"), OLD, []),
        (("algo=full", "rank_dropout=0.1"), NEW, ["rank_dropout"]),
        (("algo=full", "module_dropout=0.1"), NEW, ["module_dropout"]),
        (("algo=full", "bypass_mode=True"), NEW, ["bypass_mode"]),
        (("algo=full", "bypass_mode=False"), NEW, []),
        (("algo=lokr", "bypass_mode=True", "dora_wd=True"), MIDDLE, ["bypass_mode"]),
        (("algo=loha", "bypass_mode=True", "dora_wd=True"), MIDDLE, ["bypass_mode"]),
        (("algo=loha", "bypass_mode=True", "dora_wd=False"), MIDDLE, []),
        (("algo=ia3",), NEW, ["training-stops"]),
        (("algo=ia3",), MIDDLE, []),
        (("algo=ia3",), None, []),
    ],
)
def test_what_a_version_of_lycoris_fails_with(
    words: tuple[str, ...], version: tuple[int, ...] | None, expected: list[str]
) -> None:
    assert told(run(*words), version) == expected


def test_models_without_large_kernels_and_text_encoders_alone_do_not_stop() -> None:
    words = ("algo=loha", "module_dropout=0.1")
    assert told(run(*words, script="flux_train_network.py"), OLD) == []
    assert told(run(*words, network_train_text_encoder_only=True), OLD) == []


def test_networks_of_another_family() -> None:
    assert told(run(network_module="networks.lora_flux"), None) == ["lora-type"]
    assert told(run(network_module="networks.lora_flux", script="flux_train_network.py"), None) == []
    assert told(run(network_module=""), None) == ["lora-type"]
    assert told(ScriptRun("sdxl_train.py"), None) == []


def test_sizes_are_taken_from_weights_only_where_there_are_some() -> None:
    module = "networks.lora"
    assert told(run(network_module=module, dim_from_weights=True), None) == ["dim_from_weights"]
    assert told(run(network_module=module, dim_from_weights=True, network_weights="a.safetensors"), None) == []
    assert told(run(network_module=module), None) == []


def test_the_version_is_read_from_the_requirements() -> None:
    pinned = TextSources({"requirements.txt": "accelerate\nlycoris_lora==3.2.0.post2\n"})
    assert pinned_lycoris(None, TextSources({}), pinned) == (3, 2, 0)
    assert pinned_lycoris(TextSources({"requirements.txt": "lycoris_lora>=3\n"})) is None
