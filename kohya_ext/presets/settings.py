"""What each setting does, in a line, grouped like the GUI: for `presets show` and for the parameter guide of the docs.

Names are keys of the GUI's presets. Keys that are not here belong to other model families or to networks.
"""

from __future__ import annotations

SECTIONS: dict[str, dict[str, str]] = {
    "Model": {
        "pretrained_model_name_or_path": "the base model: a file, a folder in diffusers' form, or a name on a hub",
        "sdxl_checkbox": "the base model is SDXL",
        "sdxl": "the base model is SDXL",
        "v2": "the base model is Stable Diffusion 2",
        "v_parameterization": "the base model predicts v instead of noise",
        "flux1_checkbox": "the base model is FLUX.1",
        "sd3_checkbox": "the base model is SD 3",
        "anima_checkbox": "the base model is Anima",
        "lumina_checkbox": "the base model is Lumina Image 2",
        "save_model_as": "file form of the result",
        "save_precision": "number form of the saved weights; half of fp32's size with fp16 or bf16",
        "output_name": "name of the saved files, without extension",
        "train_inpainting": "train a nine-channel inpainting model with random masks",
    },
    "Folders": {
        "image_folder": "the pictures and their captions",
        "train_data_dir": "the folder of folders with the pictures",
        "train_dir": "where the metadata files of the data set are written",
        "output_dir": "where the trained model is written",
        "logging_dir": "where TensorBoard's logs are written",
        "reg_data_dir": "pictures that keep the model from forgetting its class",
    },
    "Data set": {
        "max_resolution": "area that every picture is scaled to, as width,height",
        "min_bucket_reso": "shortest side of a bucket",
        "max_bucket_reso": "longest side of a bucket",
        "bucket_reso_steps": "bucket sides are multiples of this",
        "bucket_no_upscale": "leave pictures smaller than the resolution as they are",
        "batch_size": "pictures at a time when latents are prepared, not when training",
        "create_caption": "write the caption metadata before training",
        "create_buckets": "sort pictures into buckets and write the latent metadata before training",
        "use_latent_files": "train from the latent metadata instead of the caption metadata",
        "caption_metadata_filename": "name of the caption metadata in the training folder",
        "latent_metadata_filename": "name of the latent metadata in the training folder",
        "full_path": "store whole paths in the metadata, so that names in sub-folders may repeat",
        "weighted_captions": "read (brackets:1.2) in captions as weights",
        "caption_extension": "extension of the caption files beside the pictures",
        "dataset_repeats": "how often each picture counts in an epoch",
        "dataset_config": "a TOML file that describes the data set instead of the fields here",
        "enable_bucket": "train every picture in its own aspect ratio",
    },
    "Duration": {
        "train_batch_size": "pictures a step; more needs memory and a higher rate",
        "gradient_accumulation_steps": "steps whose gradients are averaged into one; like a larger batch, slower",
        "epoch": "used to reckon the number of steps when 'max train epochs' is empty",
        "max_train_epochs": "passes over the data set; decides before the number of steps",
        "max_train_steps": "number of steps; 0 or empty leaves it to the epochs",
        "save_every_n_epochs": "save a model after so many epochs",
        "save_every_n_steps": "save a model after so many steps; 0 is never",
        "save_last_n_steps": "keep only the models of the last so many steps",
        "save_last_n_epochs": "keep only the models of the last so many epochs",
        "save_state": "also save what is needed to resume; large",
        "save_state_on_train_end": "also save what is needed to resume at the end",
        "seed": "same number, same run; 0 or empty is random",
    },
    "Optimizer and rate": {
        "optimizer": "how weights follow the gradients",
        "optimizer_args": "arguments of the optimizer as key=value words",
        "learning_rate": "size of the steps; of the U-Net where text encoders have their own",
        "learning_rate_te": "learning rate of the text encoder (SD 1.5 and 2)",
        "learning_rate_te1": "learning rate of SDXL's first text encoder; 0 leaves it untrained",
        "learning_rate_te2": "learning rate of SDXL's second text encoder; 0 leaves it untrained",
        "text_encoder_lr": "learning rate of the text encoder's part of the network",
        "unet_lr": "learning rate of the U-Net's part of the network",
        "train_text_encoder": "train the text encoders as well as the U-Net",
        "block_lr": "23 learning rates for the blocks of SDXL's U-Net; empty is one for all",
        "lr_scheduler": "how the learning rate changes during the run",
        "lr_scheduler_args": "arguments of the scheduler as key=value words",
        "lr_scheduler_type": "class name of a scheduler from elsewhere",
        "lr_warmup": "share of the run, in percent, in which the rate rises from 0",
        "lr_warmup_steps": "number of steps in which the rate rises from 0",
        "max_grad_norm": "gradients are scaled down to this norm; 0 does not",
    },
    "Memory and speed": {
        "mixed_precision": "number form that layers compute in",
        "full_fp16": "keep weights and gradients in fp16; prone to NaN",
        "full_bf16": "keep weights and gradients in bf16; needs stochastic rounding to go on learning",
        "fp8_base": "keep frozen weights in 8 bits",
        "gradient_checkpointing": "compute activations twice instead of keeping them: much less memory, slower",
        "fused_backward_pass": "use and free each gradient during the backward pass",
        "fused_optimizer_groups": "the same in so many groups, for other optimizers",
        "xformers": "memory-saving cross attention",
        "mem_eff_attn": "another memory-saving attention, slower",
        "cache_latents": "encode each picture once; excludes random crops and colour changes",
        "cache_latents_to_disk": "the same, kept in files for the next run",
        "sdxl_cache_text_encoder_outputs": "encode each caption once; the text encoders are not trained",
        "sdxl_no_half_vae": "run the VAE in fp32; SDXL's gives NaN in fp16",
        "vae_batch_size": "pictures at a time when latents are cached",
        "max_data_loader_n_workers": "processes that load pictures; 0 loads in the training process",
        "persistent_data_loader_workers": "keep these processes between epochs",
        "disable_mmap_load_safetensors": "read model files whole instead of mapping them",
    },
    "Captions": {
        "max_token_length": "longest caption in tokens",
        "clip_skip": "take the text encoder's output so many layers before the end",
        "shuffle_caption": "shuffle the comma-separated parts of captions",
        "keep_tokens": "leave so many parts at the front when shuffling",
        "caption_dropout_rate": "share of steps without a caption",
        "caption_dropout_every_n_epochs": "an epoch without captions every so many; 0 is never",
    },
    "Noise and loss": {
        "min_snr_gamma": "weight steps by their signal-to-noise ratio, cut at this; 5 is usual, 0 is off",
        "noise_offset_type": "which of the two noise changes below applies",
        "noise_offset": "brightness noise for a wider range of light; 0 is off",
        "adaptive_noise_scale": "add the latents' mean times this to the noise offset",
        "multires_noise_iterations": "noise at several sizes; 0 is off",
        "multires_noise_discount": "how much less each larger size counts",
        "ip_noise_gamma": "disturb the input a little; 0 is off",
        "scale_v_pred_loss_like_noise_pred": "weigh v-prediction's loss like noise prediction's",
        "v_pred_like_loss": "add so much v-prediction loss; 0 is off",
        "debiased_estimation_loss": "weigh the loss by the root of the signal-to-noise ratio",
        "min_timestep": "least noise that is trained",
        "max_timestep": "most noise that is trained",
        "loss_type": "how errors are measured",
        "masked_loss": "count only what a mask marks",
        "prior_loss_weight": "how much regularisation pictures count",
    },
    "Augmentation": {
        "random_crop": "crop pictures at a random place instead of the middle",
        "color_aug": "change colours at random",
        "flip_aug": "mirror pictures at random",
    },
    "Network": {
        "LoRA_type": "which kind of network is trained",
        "network_dim": "rank of the network: size and capacity",
        "network_alpha": "scale of the network is alpha / rank",
        "conv_dim": "rank in the convolutions",
        "conv_alpha": "scale in the convolutions",
        "network_dropout": "share of the network that is left out at random",
        "scale_weight_norms": "keep each weight's norm below this; 0 is off",
        "stop_text_encoder_training": "stop training the text encoder after this share of the steps",
    },
    "Samples": {
        "sample_every_n_steps": "make sample pictures every so many steps; 0 is never",
        "sample_every_n_epochs": "make sample pictures every so many epochs; 0 is never",
        "sample_sampler": "sampler of the sample pictures",
        "sample_prompts": "prompts of the sample pictures, one a line",
    },
    "Extra": {
        "additional_parameters": "further flags of the training script, as on its command line",
    },
}
OTHER = "Other"


def grouped(keys: list[str]) -> dict[str, list[str]]:
    """The keys by section, in the order of the GUI; what has no section comes last."""
    left = set(keys)
    groups = {}
    for section, texts in SECTIONS.items():
        if members := [key for key in texts if key in left]:
            groups[section] = members
            left -= set(members)
    if left:
        groups[OTHER] = sorted(left)
    return groups


def described(key: str) -> str:
    """What a setting does, "" where we have no text for it."""
    return next((texts[key] for texts in SECTIONS.values() if key in texts), "")
