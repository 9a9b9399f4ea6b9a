"""What we know of Kohya's code: the names of the functions we wrap, and nothing else.

Every release since July 2023 defines each of these functions exactly once, at the top level of some module of the
`library` package; only the module changes (one large `train_util.py` until sd-scripts 0.10, several small ones from
0.11). All callers look them up through the module at call time. So the *name* is the stable anchor, for the runtime,
which wraps what a module defines, and for the installer, which reads the same names as text before it touches a tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """A function at the top level of a module, read from its text or from the running function.

    parameters: their names. names: the global names and the attributes that its code refers to.
    """

    parameters: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True)
class Hook:
    """One function of sd-scripts that we wrap.

    key: our name for it. functions: its names upstream, newest first. needs_flag: the hook applies only where this
    command-line flag exists in the release ("n/a" elsewhere). parameters: those that every form of it takes.
    """

    key: str
    functions: tuple[str, ...]
    needs_flag: str | None = None
    parameters: frozenset[str] = frozenset()

    def defined_in(self, module: Mapping[str, Definition]) -> str | None:
        """The name under which a module, {name: definition} of its functions, defines this hook; None where it doesn't.

        The newest name counts. Modules of families reuse the names for thin functions that only call the hook, as do
        the older names in a release that has a newer one: what refers to a name of the hook is not the hook itself.
        """
        for number, name in enumerate(self.functions):
            found = module.get(name)
            if found is not None:
                itself = found.names.isdisjoint(self.functions[: number + 1]) and found.parameters >= self.parameters
                return name if itself else None
        return None


HOOKS: tuple[Hook, ...] = (
    Hook("arguments", ("add_optimizer_arguments",)),
    Hook("optimizer", ("get_optimizer",)),
    Hook("accelerator", ("prepare_accelerator",)),
    Hook(
        "save_during",
        (
            "save_sd_model_on_epoch_end_or_stepwise_common",
            "save_sd_model_on_epoch_end_or_stepwise",
            "save_sd_model_on_epoch_end",
        ),
    ),
    Hook("save_at_end", ("save_sd_model_on_train_end_common", "save_sd_model_on_train_end")),
    # families of models define `sample_images` of their own, next to their training helpers: zero to five a release
    Hook("sample", ("sample_images_common", "sample_images"), parameters=frozenset({"accelerator", "args", "epoch"})),
    Hook("fused_backward", ("patch_adafactor_fused",), needs_flag="--fused_backward_pass"),
)
SAMPLE = next(hook for hook in HOOKS if hook.key == "sample")


def hooks_in(module: Mapping[str, Definition]) -> Iterator[tuple[Hook, str]]:
    """Each hook that a module defines, with its name there, for the installer's scan and for the running wrapper."""
    for hook in HOOKS:
        name = hook.defined_in(module)
        if name is not None:
            yield hook, name


# What only the guide's or the pull request's old replaced files define: a flag, classes in the training
# code, and the functions that may add the flag.
LEGACY_FLAG = "--enable_ema"
LEGACY_CLASSES = ("AdaCoor", "EMAModel")
LEGACY_FLAG_HOMES = ("add_training_arguments", "add_optimizer_arguments")

# The package whose modules define the hooks, and the packages that may hold the GUI's tabs (embedded era, then v23+).
TRAINING_PACKAGE = "library"
GUI_PACKAGES = ("kohya_gui", "library")

# The file that names the release of a kohya_ss, in its folder, and the submodule with the training code (v23+).
RELEASE_FILE = ".release"
SUBMODULE = "sd-scripts"
REPOSITORIES = (".", SUBMODULE)  # folders of a checkout that may each be at a commit of their own

# The GUI's optimizer lists: the Dropdown with this label whose choices hold this entry. v26 has three such modules.
OPTIMIZER_LABEL = "Optimizer"
OPTIMIZER_LANDMARK = "AdamW8bit"

# The GUI's class whose constructor makes the field for additional flags, in every tab that has one; that field; and the
# function that puts it on the command line. Since v24 that function takes the words so far, as a list, and splits the
# field at white space; before, the command is a text for the shell.
ADVANCED_CLASS = "AdvancedTraining"
ADDITIONAL_PARAMETERS = "additional_parameters"
ADVANCED_COMMAND = "run_cmd_advanced_training"
WORDS_SO_FAR = "run_cmd"

# What validation needs besides; it is looked up when a run validates. The module and the function that builds the data
# sets of a training (called through the module, by every script that has data sets), and the methods of what it returns
# that read or change all images of it: held-out images go through the same.
DATASET_MODULE = "library.config_util"
DATASET_GROUP = "generate_dataset_group_by_blueprint"
DATASET_CLASSES = ("DreamBoothDataset", "FineTuningDataset")
DATASET_METHODS = (
    "new_cache_latents",
    "cache_latents",
    "new_cache_text_encoder_outputs",
    "cache_text_encoder_outputs",
    "cache_text_encoder_outputs_sd3",
    "set_text_encoder_output_caching_strategy",
    "set_current_strategies",
    "disable_token_padding",
)
# The attribute of the loaders' `collate_fn` that holds the step in progress, shared with the workers.
CURRENT_STEP = "current_step"
# The class that keeps the running mean of the losses (since sd-scripts 0.7.1; before, scripts did it by themselves).
LOSS_RECORDER = "LossRecorder"
# Words in the names of scripts whose data are more than images and captions, or that change weights by themselves.
NOT_VALIDATED = ("textual_inversion", "control_net", "controlnet", "leco")
