"""A preset's command on bare sd-scripts, where there is no GUI whose code would say it.

Only settings whose meaning for the script is certain are taken; a preset that has others is refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.keys import EXTRA, PRIVATE, ZERO_IS_UNSET
from kohya_ext.presets.launch_command import LaunchCommands, Surroundings
from kohya_ext.presets.machine import WITHOUT, XFORMERS, chooses_xformers
from kohya_ext.presets.release import Release, script_for
from kohya_ext.presets.script_config import GUI_NAMES
from kohya_ext.presets.script_values import SEVERAL, converted_value, typed_values
from kohya_ext.pysource.arguments import Argument

if TYPE_CHECKING:
    from kohya_ext.presets.document import Preset
    from kohya_ext.presets.project import Project

# Fields of the GUI that no script has: steps before the training, choices of the form, and what another field says too.
OF_THE_FORM = frozenset(
    {
        "batch_size", "create_buckets", "create_caption", "epoch", "full_path", "learning_rate_te", "noise_offset_type",
        "sdxl", "sdxl_checkbox", "use_latent_files",
    }
)  # fmt: skip
REPEATS = "dataset_repeats"
LORA_TYPE, STANDARD, STANDARD_MODULE = "LoRA_type", "Standard", "networks.lora"
UNSET_BY_ZERO = ZERO_IS_UNSET | {"vae_batch_size"}
# What a script that has no such argument does anyway.
UNSAID = {"loss_type": "l2", "max_timestep": 1000}
ONLY_CONVOLUTIONS = ("conv_dim", "conv_alpha")  # of the other types of LoRA
SDPA = "sdpa"
PRECISION = "mixed_precision"
THREADS = "2"  # a process, as the GUI's form begins
CONFIG = "config_file"


def commands_without_gui(preset: Preset, release: Release, project: Project, where: Surroundings) -> LaunchCommands:
    """What trains a preset with the scripts alone; the images are in folders called REPEATS_NAME.

    Raises:
        UsageError: a field is unknown, or the data folder has no such folders.
        UnsupportedError: the script cannot take the preset, or what it means there is not known.
    """
    script = script_for(preset.tab, preset.values)
    arguments = release.arguments_of(script)
    if not arguments:
        raise UnsupportedError(f"{where.root} has no script {script}, which {preset.name} needs")
    result = LaunchCommands()
    settings = dict(_settings(preset, arguments, release, result))
    settings.update(typed_values(project.fields, script, arguments, GUI_NAMES))
    project.images("lora")  # refuses what has no folder with repeats
    settings.update(project.settings("lora"))
    file = f"{project.output.resolve()}/config_{where.stamp}.toml"
    launcher = [where.accelerate, "launch", f"--{PRECISION}", str(settings.get(PRECISION, "no"))]
    launcher += ["--num_cpu_threads_per_process", THREADS]
    words = [f"{where.root}/{script}", f"--{CONFIG}", file, *shlex.split(str(preset.values.get(EXTRA) or ""))]
    result.training = [*launcher, *words]
    result.toml[file] = settings
    return result


def _settings(
    preset: Preset, arguments: Mapping[str, Argument], release: Release, result: LaunchCommands
) -> Iterator[tuple[str, Any]]:
    if preset.tab == "finetune":
        yield "enable_bucket", True  # the form prepares buckets instead
    for key, value in preset.values.items():
        name = GUI_NAMES.get(key, key)
        if key in OF_THE_FORM or key in PRIVATE or key == EXTRA or _says_nothing(value, arguments.get(name)):
            continue
        if key == XFORMERS:
            yield from _attention(value, arguments, release, result)
        elif key == LORA_TYPE and value == STANDARD:
            yield "network_module", STANDARD_MODULE
        elif key in ONLY_CONVOLUTIONS and preset.values.get(LORA_TYPE) == STANDARD:
            continue
        elif key == REPEATS:
            if str(value) != "1":
                result.complaints.append(f"{key} {value}: without a GUI, call the folder of images {value}_NAME")
        elif name not in arguments:
            _refuse(preset, key, name, value)
        else:
            usable, converted = converted_value(value, arguments[name])
            if not usable:
                raise UnsupportedError(f"{preset.name}: {key} = {value!r} is not a value of --{name}")
            several = arguments[name].nargs in SEVERAL and not isinstance(converted, list)
            yield name, [converted] if several else converted


def _refuse(preset: Preset, key: str, name: str, value: Any) -> None:
    if value == UNSAID.get(key):
        return
    if key in preset.requires:
        raise UnsupportedError(f"preset {preset.name} needs --{name}, which this release of sd-scripts does not have")
    raise UnsupportedError(f"{preset.name}: what {key} = {value!r} means without a GUI is not known")


def _says_nothing(value: Any, argument: Argument | None) -> bool:
    """Left open in the form, or a zero that stands for that."""
    if value in ("", None) or value is False:
        return True
    unset = argument is None or argument.default in (None, 0) or argument.name in UNSET_BY_ZERO
    return value in (0, "0") and unset


def _attention(
    value: Any, arguments: Mapping[str, Argument], release: Release, result: LaunchCommands
) -> Iterator[tuple[str, Any]]:
    if chooses_xformers(value) and release.xformers is False and SDPA in arguments:
        result.complaints.append(f"{XFORMERS} changed from {value} to {SDPA}: {WITHOUT}")
        value = SDPA
    if value is True or value in arguments:
        yield (XFORMERS if value is True else value), True
