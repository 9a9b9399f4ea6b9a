"""A small training code for tests on TOML files: three scripts, and the tables of data set configurations."""

from __future__ import annotations

from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Schema
from kohya_ext.pysource.sources import TextSources

SHARED = """
def add_shared_arguments(parser):
    parser.add_argument("--pretrained_model_name_or_path", type=str, default=None)
    parser.add_argument("--config_file", type=str, default=None)
    parser.add_argument("--dataset_config", type=str, default=None)
    parser.add_argument("--train_data_dir", type=str, default=None)
    parser.add_argument("--output_dir", type=str, default=None)
    parser.add_argument("--resolution", type=str, default=None)
    parser.add_argument("--enable_bucket", action="store_true")
    parser.add_argument("--min_bucket_reso", type=int, default=256)
    parser.add_argument("--max_bucket_reso", type=int, default=1024)
    parser.add_argument("--bucket_reso_steps", type=int, default=64)
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--caption_extension", type=str, default=".caption")
    parser.add_argument("--learning_rate", type=float, default=2e-6)
    parser.add_argument("--optimizer_type", type=str, default="")
    parser.add_argument("--optimizer_args", type=str, default=None, nargs="*")
    parser.add_argument("--lr_warmup_steps", type=int_or_float, default=0)
    parser.add_argument("--max_train_epochs", type=int, default=None)
    parser.add_argument("--max_train_steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--lowram", action="store_true")
    parser.add_argument("--clip_skip", type=int, default=None)
    parser.add_argument("--max_grad_norm", default=1.0, type=float)
    parser.add_argument("--mixed_precision", type=str, default="no", choices=["no", "fp16", "bf16"])
    parser.add_argument("--save_precision", type=str, default=None, choices=[None, "float", "fp16", "bf16"])
    parser.add_argument("--vae", type=str, default=None)
    parser.add_argument("--loss_type", type=str, default="l2", choices=["l1", "l2", "huber", "smooth_l1"])
    parser.add_argument("--huber_schedule", type=str, default="snr", choices=["constant", "exponential", "snr"])
    parser.add_argument("--multires_noise_iterations", type=int, default=None)
"""

NETWORK = """
from library.shared import add_shared_arguments

def setup_parser():
    parser = argparse.ArgumentParser()
    add_shared_arguments(parser)
    parser.add_argument("--network_module", type=str, default=None)
    parser.add_argument("--network_dim", type=int, default=None)
    parser.add_argument("--network_args", type=str, default=None, nargs="*")
    parser.add_argument("--unet_lr", type=float, default=None)
    parser.add_argument("--text_encoder_lr", type=float, default=None, nargs="*")
    parser.add_argument("--network_train_unet_only", action="store_true")
    return parser
"""
SDXL_NETWORK = NETWORK.replace(
    "    return parser",
    '    parser.add_argument("--cache_text_encoder_outputs", action="store_true")\n    return parser',
)
SDXL = """
from library.shared import add_shared_arguments

def setup_parser():
    parser = argparse.ArgumentParser()
    add_shared_arguments(parser)
    parser.add_argument("--learning_rate_te1", type=float, default=None)
    parser.add_argument("--cache_text_encoder_outputs", action="store_true")
    parser.add_argument("--train_text_encoder", action="store_true")
    return parser
"""
CONFIG = """
class ConfigSanitizer:
    SUBSET_ASCENDABLE_SCHEMA = {
        "flip_aug": bool,
        "num_repeats": int,
        "keep_tokens": int,
        "face_crop_aug_range": functools.partial(__validate_and_convert_twodim.__func__, float),
        "custom_attributes": dict,
    }
    DO_SUBSET_ASCENDABLE_SCHEMA = {"caption_dropout_rate": Any(float, int)}
    DB_SUBSET_ASCENDABLE_SCHEMA = {"caption_extension": str, "class_tokens": str}
    DB_SUBSET_DISTINCT_SCHEMA = {Required("image_dir"): str, "is_reg": bool}
    FT_SUBSET_DISTINCT_SCHEMA = {Required("metadata_file"): str, "image_dir": str}
    CN_SUBSET_ASCENDABLE_SCHEMA = {"caption_extension": str}
    CN_SUBSET_DISTINCT_SCHEMA = {Required("image_dir"): str, Required("conditioning_data_dir"): str}
    DATASET_ASCENDABLE_SCHEMA = {
        "batch_size": int,
        "enable_bucket": bool,
        "min_bucket_reso": int,
        "max_bucket_reso": int,
        "bucket_reso_steps": int,
        "network_multiplier": float,
        "resolution": functools.partial(__validate_and_convert_scalar_or_twodim.__func__, int),
    }
    ARGPARSE_SPECIFIC_SCHEMA = {"prior_loss_weight": Any(float, int)}
    ARGPARSE_NULLABLE_OPTNAMES = ["face_crop_aug_range", "resolution"]
    ARGPARSE_OPTNAME_TO_CONFIG_OPTNAME = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}
"""
TEXTS = {
    "library/shared.py": SHARED,
    "library/config_util.py": CONFIG,
    "train_network.py": NETWORK,
    "sdxl_train_network.py": SDXL_NETWORK,
    "sdxl_train.py": SDXL,
}
RELEASE = Release("v0", Schema("lora", "", {}, presets_list=False), training=TextSources(TEXTS))
