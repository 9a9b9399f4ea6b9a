"""What users report of the memory of their runs, next to what a preflight predicts for the same settings.

    python -m benchmarks.reported CHECKOUT --python KOHYAS_PYTHON [--other REVISION CHECKOUT] [NAME ...]

CHECKOUT is sd-scripts or kohya_ss with every script named below; a row about a pull request is traced on a checkout of
that, and is skipped where none is named. Prints a row of the table in
docs/explanation/preflight-memory.md as soon as it is known; a row takes a minute or two. What a report leaves open is
as the script or the GUI has it when nothing is said (text encoders stay on the card, AdamW8bit), with cached latents,
gradient checkpointing, memory-saving attention, batch size 1, without sample images. A figure is what was seen while
it trained, so loading and caching do not count for it; for a bound they do. Reported GB are taken as GiB, as the tools
of a card show them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.preset_memory import counted
from kohya_ext.preflight.memory import CONTEXT, SHARE
from kohya_ext.spec.cards import GIB

COMMON = ("--train_data_dir=none", "--output_dir=o", "--output_name=x", "--resolution=1024,1024",
          "--max_train_steps=100", "--cache_latents", "--gradient_checkpointing", "--learning_rate=1e-5")  # fmt: skip
SDXL = ("sdxl_train.py", "--pretrained_model_name_or_path=sdxl.safetensors", *COMMON, "--xformers")
FLUX = ("flux_train_network.py", "--pretrained_model_name_or_path=flux.safetensors", "--ae=ae.safetensors",
        "--clip_l=clip_l.safetensors", "--t5xxl=t5xxl.safetensors", *COMMON, "--sdpa", "--network_train_unet_only",
        "--network_module=networks.lora_flux")  # fmt: skip
ADAFACTOR = ("--optimizer_type=Adafactor", "--lr_scheduler=constant", "--optimizer_args", "relative_step=False",
             "scale_parameter=False", "warmup_init=False")  # fmt: skip
FULL_BF16 = ("--mixed_precision=bf16", "--full_bf16")
FUSED = ("--fused_backward_pass", "--max_grad_norm=0")
A6000 = ("--network_dim=128", "--network_alpha=128")
FULL_FP16 = ("--mixed_precision=fp16", "--full_fp16")
CACHED_TEXT = ("--cache_text_encoder_outputs",)
FLUX_LORA = (*FLUX, "--network_dim=4", "--mixed_precision=bf16", "--fp8_base", *CACHED_TEXT)
SMALL_T5 = tuple(word.replace("t5xxl.safetensors", "t5xxl_fp8_e4m3fn.safetensors") for word in FLUX_LORA)
FLUX_FULL = (*(word for word in FLUX[1:] if "network" not in word), *FULL_BF16, *CACHED_TEXT, *FUSED, *ADAFACTOR)
PLAIN = tuple(word for word in SDXL if word != "--xformers")
SDXL_LORA = ("sdxl_train_network.py", *SDXL[1:], "--network_module=networks.lora", "--no_half_vae", *FULL_BF16)
SD3 = ("sd3_train.py", "--pretrained_model_name_or_path=sd3.5_medium.safetensors", "--clip_l=clip_l.safetensors",
       "--clip_g=clip_g.safetensors", "--t5xxl=t5xxl_fp16.safetensors",
       *(word.replace("1024,1024", "512,512") for word in COMMON), *CACHED_TEXT, *FULL_BF16)  # fmt: skip
HALF_LORA = (*SDXL_LORA[: -len(FULL_BF16)], "--mixed_precision=fp16", "--network_dim=32")
BEFORE_TRAINING = ("loading", "caching")  # phases
SCHEDULE_FREE = ("--optimizer_type=prodigyplus.ProdigyPlusScheduleFree", "--lr_scheduler=constant",
                 "--optimizer_args", "weight_decay=0")  # fmt: skip
BIT_ADAMW = ("--optimizer_type=AdamW8bit",)


@dataclass(frozen=True)
class Report:
    """reported: GiB, or what is said of a card: "fits 24", "out of memory on 24", "more than 26".

    revision: of sd-scripts, where the report is about other code than the checkout's.
    """

    source: str
    reported: float | str
    words: tuple[str, ...]
    revision: str = ""


PR_1259, PR_1867 = "kohya-ss/sd-scripts#1259", "kohya-ss/sd-scripts#1867"
ISSUE_661, ISSUE_2530 = "kohya-ss/sd-scripts#661", "bmaltais/kohya_ss#2530"
ISSUE_1875, ISSUE_2972 = "bmaltais/kohya_ss#1875", "bmaltais/kohya_ss#2972"
ISSUE_1184 = "bmaltais/kohya_ss#1184"
FLUX_DOCS, FLUX_README = "sd-scripts, docs/flux_train_network.md", "sd-scripts, README of 2024-12"
PR_1866 = "kohya-ss/sd-scripts#1866"
PR_1374 = "kohya-ss/sd-scripts#1374, bmaltais/kohya_ss#2701"
REPORTS = {
    "SDXL full_bf16, Adafactor, fused": Report(PR_1259, 10.0, (*SDXL, *FULL_BF16, *FUSED, *ADAFACTOR)),
    "SDXL fp32, Adafactor, fused": Report(PR_1259, 16.4, (*SDXL, "--mixed_precision=no", *FUSED, *ADAFACTOR)),
    "the first, batch size 16": Report(
        PR_1259, "fits 24", (*SDXL, "--train_batch_size=16", *FULL_BF16, *FUSED, *ADAFACTOR)
    ),
    "the second, batch size 6": Report(
        PR_1259, "fits 24", (*SDXL, "--train_batch_size=6", "--mixed_precision=no", *FUSED, *ADAFACTOR)
    ),
    "SDXL full_bf16, Prodigy": Report(PR_1867, 33.0, (*SDXL, *FULL_BF16, "--optimizer_type=Prodigy")),
    "SDXL full_bf16, Prodigy schedule-free": Report(PR_1867, 19.0, (*SDXL, *FULL_BF16, *SCHEDULE_FREE)),
    "the same, fused": Report(
        PR_1867, 13.0, (*SDXL, *FULL_BF16, *FUSED, *SCHEDULE_FREE), "pull/1866"
    ),
    "SD 3.5 medium full_bf16, 512 pixels, Prodigy": Report(PR_1866, 27.2, (*SD3, "--optimizer_type=Prodigy")),
    "SD 3.5 medium, Prodigy schedule-free": Report(PR_1866, 15.4, (*SD3, *SCHEDULE_FREE)),
    "SD 3.5 medium, the same, fused": Report(
        PR_1866, 10.2, (*SD3, *FUSED, *SCHEDULE_FREE), "pull/1866"
    ),
    "SDXL full_bf16, Prodigy, sdpa": Report(
        "kohya-ss/sd-scripts#1152", "out of memory on 24",
        (*PLAIN, "--sdpa", "--no_half_vae", *FULL_BF16, "--optimizer_type=Prodigy"),
    ),
    "FLUX LoRA rank 128, bf16": Report(PR_1374, 44.18, (*FLUX, *A6000, "--mixed_precision=bf16", *ADAFACTOR)),
    "the same, full_bf16": Report(PR_1374, 42.58, (*FLUX, *A6000, *FULL_BF16, *ADAFACTOR)),
    "FLUX LoRA rank 128, fp16": Report(PR_1374, 44.14, (*FLUX, *A6000, "--mixed_precision=fp16", *ADAFACTOR)),
    "the same again, full_fp16": Report(
        PR_1374, 42.55, (*FLUX, *A6000, "--mixed_precision=fp16", "--full_fp16", *ADAFACTOR)
    ),
    "the same, fp8 base": Report(
        PR_1374, 33.53, (*FLUX, *A6000, "--mixed_precision=fp16", "--fp8_base", *ADAFACTOR)
    ),
    "FLUX LoRA rank 4, AdamW8bit, cached text encoders": Report(
        "huggingface.co/kohya-ss/misc-models", "more than 26",
        (*FLUX, "--network_dim=4", "--mixed_precision=bf16", "--cache_text_encoder_outputs",
         *BIT_ADAMW),
    ),
    "SDXL fp32, Adafactor, fused, by its README": Report(
        "sd-scripts, README", 17.0, (*SDXL, "--mixed_precision=no", *FUSED, *ADAFACTOR)
    ),
    "SDXL full_fp16, Adafactor": Report(ISSUE_1875, "fits 16", (*SDXL, *FULL_FP16, "--no_half_vae", *ADAFACTOR)),
    "the same and its text encoders": Report(
        ISSUE_1875, "out of memory on 16", (*SDXL, *FULL_FP16, "--no_half_vae", "--train_text_encoder", *ADAFACTOR)
    ),
    "SDXL full_fp16, its first text encoder": Report(
        "kohya-ss/sd-scripts#1131", "out of memory on 15",
        (*PLAIN, "--mem_eff_attn", *FULL_FP16, "--no_half_vae", "--train_text_encoder", "--learning_rate_te1=3e-6",
         "--max_grad_norm=0", *ADAFACTOR),
    ),
    "SDXL full_fp16, AdamW8bit": Report(ISSUE_2530, 19.0, (*SDXL, *FULL_FP16, "--no_half_vae", *BIT_ADAMW)),
    "SDXL full_fp16, cached text encoders": Report(
        ISSUE_2530, "fits 16", (*SDXL, *FULL_FP16, "--no_half_vae", *CACHED_TEXT, *ADAFACTOR)
    ),
    "SDXL bf16, Adafactor, cached text encoders": Report(
        "bmaltais/kohya_ss#1103", "fits 24", (*SDXL, "--mixed_precision=bf16", *CACHED_TEXT, *ADAFACTOR)
    ),
    "SDXL LoRA rank 32, full_bf16, Adafactor": Report(
        ISSUE_661, "fits 12", (*SDXL_LORA, "--network_dim=32", *ADAFACTOR)
    ),
    "SDXL LoRA rank 256, U-Net only": Report(
        ISSUE_661, "fits 12", (*SDXL_LORA, "--network_dim=256", "--network_train_unet_only", *ADAFACTOR)
    ),
    "SDXL LoRA rank 32, fp16, batch size 2": Report(
        ISSUE_1184, "fits 10", (*HALF_LORA, *BIT_ADAMW, "--train_batch_size=2")
    ),
    "the same, 768 pixels, batch size 3": Report(
        ISSUE_1184, "fits 10",
        (*(word.replace("1024,1024", "768,768") for word in HALF_LORA), *BIT_ADAMW, "--train_batch_size=3"),
    ),
    "FLUX LoRA, fp8 base, batch size 2": Report(
        FLUX_DOCS, "fits 24", (*FLUX_LORA, *BIT_ADAMW, "--train_batch_size=2")
    ),
    "FLUX LoRA, fp8 base, Adafactor": Report(FLUX_README, "fits 16", (*FLUX_LORA, *ADAFACTOR)),
    "FLUX LoRA, fp8 base, 16 blocks swapped": Report(
        FLUX_DOCS, "fits 12", (*FLUX_LORA, *BIT_ADAMW, "--blocks_to_swap=16")
    ),
    "the same, 22 blocks, T5 in fp8": Report(FLUX_DOCS, "fits 10", (*SMALL_T5, *BIT_ADAMW, "--blocks_to_swap=22")),
    "the same, 28 blocks": Report(FLUX_DOCS, "fits 8", (*SMALL_T5, *BIT_ADAMW, "--blocks_to_swap=28")),
    "FLUX full_bf16, Adafactor, fused, 8 blocks swapped": Report(
        FLUX_README, "fits 24", ("flux_train.py", *FLUX_FULL, "--blocks_to_swap=8")
    ),
    "the same, none swapped": Report(ISSUE_2972, "out of memory on 24", ("flux_train.py", *FLUX_FULL)),
    "the same, 22 swapped": Report(ISSUE_2972, "fits 24", ("flux_train.py", *FLUX_FULL, "--blocks_to_swap=22")),
    "the same, 33 swapped": Report(
        "kohya-ss/sd-scripts#1764", "fits 12", ("flux_train.py", *FLUX_FULL, "--blocks_to_swap=33")
    ),
}  # fmt: skip


def predicted(report: Report, checkout: Path, python: str) -> tuple[float, float, float, float]:
    """GiB: counted, expected, at least, at most. Raises SystemExit where nothing was counted."""
    phases = counted([str(checkout)], python, report.words)["phases"]
    skipped = BEFORE_TRAINING if isinstance(report.reported, float) else ()
    alive = max(phase["bytes"] for phase in phases if phase["name"] not in skipped) / GIB
    low, expected, high = (alive * (1 + share) + fixed / GIB for fixed, share in zip(CONTEXT, SHARE, strict=True))
    return alive, expected, low, high


def judged(reported: float | str, expected: float, low: float, high: float) -> str:
    """How a prediction stands to what is reported."""
    if isinstance(reported, float):
        where = "in the interval" if low <= reported <= high else "**outside** of the interval"
        return f"{where}; {100 * (expected / reported - 1):+.0f} %"
    size = float(reported.rsplit(" ", 1)[-1])
    if reported.startswith("fits"):
        return "**contradicted**" if low > size else "not contradicted"
    return "**contradicted**" if high <= size else "not contradicted"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--python", required=True)
    parser.add_argument("--other", nargs=2, action="append", default=[], metavar=("REVISION", "CHECKOUT"))
    arguments = parser.parse_args()
    print("| run | source | reported | counted | predicted | interval | holds |\n|---|---|---|---|---|---|---|")
    checkouts = {"": arguments.checkout, **{revision: Path(folder) for revision, folder in arguments.other}}
    for name, report in REPORTS.items():
        if (arguments.names and name not in arguments.names) or report.revision not in checkouts:
            continue
        alive, expected, low, high = predicted(report, checkouts[report.revision], arguments.python)
        verdict = judged(report.reported, expected, low, high)
        figures = f"{alive:.1f} | {expected:.1f} | {low:.1f} to {high:.1f}"
        print(f"| {name} | {report.source} | {report.reported} | {figures} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
