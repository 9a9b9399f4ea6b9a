"""Names of Kohya's that a preflight goes by: what it watches, and what it answers itself.

As the hooks, each is found by its name in whatever module of `library` a release keeps it.
"""

from __future__ import annotations

from kohya_ext.spec.flags import FEATURES, VALIDATION

# The class that holds all data sets of a run, and what caches through it before training.
DATASET_GROUP = "DatasetGroup"
CACHING_METHODS = (
    "cache_latents",
    "new_cache_latents",
    "cache_text_encoder_outputs",
    "cache_text_encoder_outputs_sd3",
    "new_cache_text_encoder_outputs",
)

# Called when the optimizer is made and the number of steps is known, in every release.
SCHEDULER = "get_scheduler_fix"

# Encodes a batch of images with the VAE; writes latents next to an image; loads the VAE alone (a preparation step).
ENCODE_BATCH = "cache_batch_latents"
WRITE_LATENTS = "save_latents_to_disk"
LOAD_VAE = "load_vae"
VAE_OF_PREPARATION = "model_util"  # the module whose `load_vae` that is: SD3's is another

# Read whole model files for the metadata.
HASHES = ("model_hash", "calculate_sha256", "precalculate_safetensors_hashes")

# Reads the file of `--dataset_config`.
LOAD_DATA_CONFIG = "load_user_config"

# Arguments that name a model, a folder of images, and a file or folder that a run writes.
MODEL_ARGUMENTS = (
    "ae",
    "anima_qwen3",
    "byt5",
    "clip_g",
    "clip_l",
    "controlnet_model_name_or_path",
    "gemma2",
    "pretrained_model_name_or_path",
    "qwen3",
    "t5xxl",
    "text_encoder",
    "vae",
)
DATA_ARGUMENTS = ("train_data_dir", "reg_data_dir", "conditioning_data_dir")
METADATA_ARGUMENT = "in_json"
OUTPUT_ARGUMENTS = ("output_dir", "logging_dir")

# What reaches for accounts, uploads, or files of an earlier run: not part of a preflight.
DROPPED_ARGUMENTS = (
    "async_upload",
    "huggingface_path_in_repo",
    "huggingface_repo_id",
    "huggingface_repo_type",
    "huggingface_repo_visibility",
    "huggingface_token",
    "log_config",
    "log_tracker_config",
    "log_with",
    "output_config",
    "resume",
    "resume_from_huggingface",
    "save_state_to_huggingface",
    "wandb_api_key",
    "wandb_run_name",
    *(flag.key for flag in FEATURES[VALIDATION]),  # its images may be elsewhere, and it changes no peak
)
CONFIG_ARGUMENT = "config_file"
