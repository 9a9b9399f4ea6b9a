"""Everything about an installed release that presets are judged by, read from its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kohya_ext.core.about import MANIFEST
from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.migration import Migration, read_migration
from kohya_ext.presets.schema import Schema, Tab, read_schema
from kohya_ext.pysource.arguments import Argument, arguments_of
from kohya_ext.pysource.sources import FolderSources, Sources

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout

REQUIREMENTS = ("requirements.txt", "setup/requirements.txt")

DATASETS = ("library/finetuning_dataset.py", "library/train_util.py")

# The scripts that a tab runs: for SDXL, and for SD 1.5 and 2.
SCRIPTS: dict[Tab, tuple[str, str]] = {
    "finetune": ("sdxl_train.py", "fine_tune.py"),
    "lora": ("sdxl_train_network.py", "train_network.py"),
    "dreambooth": ("sdxl_train.py", "train_db.py"),
    "ti": ("sdxl_train_textual_inversion.py", "train_textual_inversion.py"),
}
SDXL = ("sdxl_checkbox", "sdxl")
# The box that a model family has in the form -> how its scripts are called; networks have `_network` behind.
FAMILIES = {
    "flux1_checkbox": "flux_train",
    "sd3_checkbox": "sd3_train",
    "anima_checkbox": "anima_train",
    "lumina_checkbox": "lumina_train",
    "hunyuan_image_checkbox": "hunyuan_image_train",
}


# Scripts that no tab runs, or only for networks of another kind.
OTHER_TRAINERS = (
    "sdxl_train_leco.py",
    "train_leco.py",
    "train_controlnet.py",
    "sdxl_train_control_net.py",
    "sdxl_train_control_net_lllite.py",
    "flux_train_control_net.py",
)


def script_for(tab: Tab, values: Mapping[str, Any]) -> str:
    """The script that the tab runs for a form."""
    if any(values.get(key) is True for key in SDXL):
        return SCRIPTS[tab][0]
    for key, name in FAMILIES.items():
        if values.get(key) is True:
            return f"{name}{'_network' * (tab == 'lora')}.py"
    return SCRIPTS[tab][1]


@dataclass(frozen=True)
class Release:
    """One tab of an installed GUI.

    arguments: those of the training script for SDXL. training: where those of the other scripts are. gui: the GUI's own
    files. gradio: its major version as far as requirements.txt pins it, else None. patched: whether kohya_ext is
    installed in the checkout.
    wants_cached_latents: a fault of sd-scripts 0.10: data sets from metadata files work with cached latents only.
    xformers: whether the environment has this package, None = not known.
    refuses_no_upscale: up to 0.9 these stop on `bucket_no_upscale` once the buckets are prepared.
    """

    name: str
    schema: Schema
    migration: Migration = field(default_factory=Migration)
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    gradio: int | None = None
    patched: bool = False
    wants_cached_latents: bool = False
    refuses_no_upscale: bool = False
    training: Sources | None = None
    gui: Sources | None = None
    xformers: bool | None = None
    _read: dict[str, Mapping[str, Argument]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def arguments_for(self, values: Mapping[str, Any]) -> Mapping[str, Argument]:
        """The arguments of the script that a form would run; empty where they are not known."""
        script = script_for(self.schema.tab, values)
        if script == SCRIPTS[self.schema.tab][0]:
            return self.arguments
        return self.arguments_of(script)

    def arguments_of(self, script: str) -> Mapping[str, Argument]:
        """The arguments of any script of the release, read once; empty where it has no such script."""
        if script not in self._read and self.training is not None:
            self._read[script] = arguments_of(self.training, script)
        return self._read.get(script, {})

    def trainers(self) -> list[str]:
        """The training scripts that the release has: of networks, of whole models, of embeddings, of ControlNets."""
        names = [script for pair in SCRIPTS.values() for script in pair]
        names += [f"{name}{ending}.py" for name in FAMILIES.values() for ending in ("_network", "")]
        return [name for name in dict.fromkeys((*names, *OTHER_TRAINERS)) if self.arguments_of(name)]

    @property
    def flags(self) -> frozenset[str]:
        """The flags of the training script for SDXL."""
        return frozenset(argument.flag for argument in self.arguments.values())


def read_release(
    checkout: Checkout,
    tab: Tab,
    *,
    patched: bool | None = None,
    gradio: int | None = None,
    xformers: bool | None = None,
) -> Release:
    """What `checkout` is for presets of `tab`.

    patched: None = look whether kohya_ext is installed there. gradio: its major version, None = what is pinned.
    xformers: whether the environment has the package, None = not known.
    Raises UnsupportedError where the checkout has no such tab.
    """
    if patched is None:
        patched = (checkout.root / MANIFEST).is_file()
    if checkout.gui_root is None:
        raise UnsupportedError(f"{checkout.root} is sd-scripts without a GUI: presets are for kohya_ss")
    sources = FolderSources(checkout.root)
    schema = read_schema(sources, tab, patched=patched)
    if schema is None:
        raise UnsupportedError(f"{checkout.root} has no {tab} tab that loads presets")
    training = FolderSources(checkout.training_root)
    return Release(
        checkout.release,
        schema,
        read_migration(sources),
        arguments_of(training, SCRIPTS[tab][0]),
        pinned_gradio(sources) if gradio is None else gradio,
        patched,
        wants_cached_latents(training),
        refuses_no_upscale(training),
        training,
        sources,
        xformers,
    )


def read_training(
    checkout: Checkout, *, tab: Tab = "lora", patched: bool | None = None, xformers: bool | None = None
) -> Release:
    """The training code of `checkout` alone, kohya_ss or bare sd-scripts, for settings that no GUI reads."""
    if patched is None:
        patched = (checkout.root / MANIFEST).is_file()
    training = FolderSources(checkout.training_root)
    return Release(
        checkout.release,
        Schema(tab, "", {}, presets_list=False),
        patched=patched,
        training=training,
        xformers=xformers,
    )


def pinned_gradio(sources: Sources) -> int | None:
    """The major version of gradio that the release requires; for an open pin (`>=`) the one it was written for."""
    for path in REQUIREMENTS:
        match = re.search(r"^gradio(?:\[[^\]]*\])?\s*(?:==|>=|~=)\s*(\d+)", sources.read(path) or "", re.MULTILINE)
        if match is not None:
            return int(match.group(1))
    return None


def wants_cached_latents(training: Sources) -> bool:
    """Whether the data set class asks the caching strategy for a file suffix without asking if there is a strategy."""
    body = _finetuning_dataset(training)
    return "strategy.cache_suffix" in body and "strategy is not None" not in body


def refuses_no_upscale(training: Sources) -> bool:
    """Whether the data set class insists that buckets from metadata files were made with upscaling."""
    return "not bucket_no_upscale" in _finetuning_dataset(training)


def _finetuning_dataset(training: Sources) -> str:
    """The text of the class that reads metadata files, "" where there is none."""
    for path in DATASETS:
        _, found, rest = (training.read(path) or "").partition("class FineTuningDataset(")
        if found:
            return rest.split("\nclass ")[0]
    return ""
