"""What sd-scripts calls the files and states that a run saves, and what we call those of the EMA."""

from __future__ import annotations

import re

EMA_SUFFIX = "-ema"  # the second EMA of a run, one of another width, has a 2 behind it
MOST_EMAS = 2  # that one run keeps
BEST_SUFFIX = "-best"  # of the copy that --save_best keeps
BEST_METADATA = "kohya_ext_best_"  # how the keys begin that say in it what it is
EMA_METADATA = "kohya_ext_ema_"  # how the keys begin that say in a file which EMA it holds
# NAME-000010 after an epoch, NAME-step00000200 after steps, NAME at the end of the run
COUNTED = r"-(?P<epoch>\d{6})|-step(?P<step>\d{8})"
SAVED = re.compile(rf"(?P<name>.+?)(?P<ema>{EMA_SUFFIX}2?)?(?:{COUNTED})?")

# the folder next to NAME with the snapshots of its EMAs, which `kohya-ext ema` makes EMAs of other lengths from
SNAPSHOTS_SUFFIX = "-ema-snapshots"
SNAPSHOT = re.compile(r"ema(?P<place>2?)-step(?P<step>\d{8})\.safetensors")
REFERENCE_FILE = "reference.safetensors"  # what 16-bit snapshots hold the differences from
SAMPLES_FILE = "saved.safetensors"  # tells which tensor of a saved file is which parameter
NAMELESS_LAST = "last"  # in place of an output name, for a run's last file

STATE_SUFFIX = "-state"
STEP_STATE = "{}-step{:08d}" + STATE_SUFFIX  # output name, step
NAMELESS_STEP = "at"  # in place of an output name
SAVING_PREFIX = ".kohya_ext-save-"  # folders of ours in which something is written before it is moved into place


def ema_suffix(place: int) -> str:
    """What a run adds to its name for its EMA at this place, from 0."""
    return EMA_SUFFIX if place == 0 else f"{EMA_SUFFIX}{place + 1}"


def snapshots_folder(name: str) -> str:
    """The folder of the snapshots of a run with this output name."""
    return name + SNAPSHOTS_SUFFIX


def snapshot_file(place: int, step: int) -> str:
    """The snapshot after `step` of a run's EMA at this place, from 0."""
    return f"{ema_suffix(place).removeprefix('-')}-step{step:08d}.safetensors"
