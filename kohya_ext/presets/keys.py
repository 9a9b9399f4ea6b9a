"""What we know about single keys of Kohya's presets, whatever the release."""

from __future__ import annotations

from typing import Any

from kohya_ext.spec.secrets import KOHYAS

# Secrets: never in a preset, whoever wrote it.
SECRETS = frozenset(KOHYAS)

# Files and folders of one machine or one project.
PATHS = frozenset(
    {
        "ae",
        "anima_llm_adapter_path",
        "anima_qwen3",
        "anima_t5_tokenizer_path",
        "anima_vae",
        "base_weights",
        "clip_g",
        "clip_l",
        "dataset_config",
        "dim_from_weights_path",
        "flux1_clip_l",
        "flux1_t5xxl",
        "hunyuan_byt5",
        "hunyuan_text_encoder",
        "hunyuan_vae",
        "image_folder",
        "log_tracker_config",
        "logging_dir",
        "lora_network_weights",
        "lumina_ae",
        "lumina_gemma2",
        "network_weights",
        "output_dir",
        "pretrained_model_name_or_path",
        "reg_data_dir",
        "resume",
        "sd3_clip_l",
        "sd3_t5xxl",
        "t5xxl",
        "train_data_dir",
        "train_dir",
        "vae",
        "weights",
    }
)

# What belongs to one machine, account or run, without being a path.
PERSONAL = frozenset(
    {
        "caption_metadata_filename",
        "extra_accelerate_launch_args",
        "gpu_ids",
        "huggingface_path_in_repo",
        "huggingface_repo_id",
        "init_word",
        "latent_metadata_filename",
        "log_tracker_name",
        "main_process_port",
        "metadata_author",
        "metadata_description",
        "metadata_license",
        "metadata_tags",
        "metadata_title",
        "model_list",
        "multi_gpu",
        "num_cpu_threads_per_process",
        "num_machines",
        "num_processes",
        "output_name",
        "resume_from_huggingface",
        "sample_prompts",
        "token_string",
        "training_preset",
        "wandb_run_name",
    }
)

PRIVATE = SECRETS | PATHS | PERSONAL

# Old name -> today's; training writes some of the old ones next to the model even now.
RENAMED = {
    "generate_caption_database": "create_caption",
    "generate_image_buckets": "create_buckets",
    "lora_network_weights": "network_weights",
    "stop_text_encoder_training_pct": "stop_text_encoder_training",
    "use_wandb": "log_with",
}

# Keys without a successor: every release ignores them. Kept apart from keys that another release knows.
DEAD = frozenset(
    {"no_token_padding", "save_as_bool", "use_8bit_adam", "conv_dims", "conv_alphas", "headless", "print_only"}
)

# In number fields of newer releases 0 means "not set", for which the text boxes of old ones are left empty.
ZERO_IS_UNSET = frozenset({"seed", "max_train_epochs", "max_train_steps"})
# A text box with 0 is a limit that trains nothing. A seed of 0 is one like any other: it stays.
ZERO_TRAINS_NOTHING = ZERO_IS_UNSET - {"seed"}

# Up to v23.1.3 loading a preset without these keys sets them to 0: nothing would be trained.
ZEROED_WHEN_ABSENT = (
    "epoch",
    "save_every_n_epochs",
    "lr_warmup",
    "noise_offset",
    "learning_rate",
    "text_encoder_lr",
    "unet_lr",
)

# Loading a preset without an optimizer sets this one, in every release.
OPTIMIZER_WHEN_ABSENT = "AdamW"

# Settings that sd-scripts knew before the GUI had a field: they can go through "additional parameters".
FLAGS = {"fused_backward_pass": "--fused_backward_pass"}

# The field of further flags, and what flags of the training script are called in the form where the names differ.
EXTRA = "additional_parameters"
KEYS_OF_FLAGS = {
    "cache_text_encoder_outputs": "sdxl_cache_text_encoder_outputs",
    "no_half_vae": "sdxl_no_half_vae",
    "optimizer_type": "optimizer",
    "resolution": "max_resolution",
}

# The learning rates of all tabs.
RATES = ("learning_rate", "learning_rate_te", "learning_rate_te1", "learning_rate_te2", "text_encoder_lr", "unet_lr")

# Arguments that a run counts or sizes with; the fraction 2.0 ends it.
WHOLE = frozenset({"gradient_accumulation_steps", "max_train_epochs", "max_train_steps", "network_dim", "seed"})

# How the names of optimizers begin that find their own rate.
ADAPTIVE = ("prodigy", "dadapt")

# Rate 1 is right for these of Kohya's only.
RATE_ONE = frozenset({"prodigy", "dadaptation", "dadaptadam", "prodigyplus.prodigyplusschedulefree"})


def flags_in(text: Any) -> dict[str, Any]:
    """Name of each flag, without its dashes -> its value: True for a bare one, the text after it else.

    Of several words after a flag (`--optimizer_args a=1 b=2`) the value is all of them with spaces between. Quotes go,
    as they do in the GUI.
    """
    found: dict[str, Any] = {}
    name = ""
    for word in str(text or "").replace('"', "").split():
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else True
        elif name:
            found[name] = word if found[name] is True else f"{found[name]} {word}"
    return found
