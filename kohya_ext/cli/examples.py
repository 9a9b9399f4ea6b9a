"""What every `--help` ends with: two examples that can be pasted, and the page that says more.

Keyed by the words of the command. A test parses each example and looks for each page, so neither can go stale.
"""

from __future__ import annotations

from kohya_ext.core.about import REPOSITORY

KOHYA = "/workspace/kohya_ss"
SDXL = "sd_xl_base_1.0_0.9vae.safetensors"
START = "docs/tutorial/first-run.md"
INSTALL = "docs/how-to/rented-gpu.md"
TROUBLE = "docs/troubleshooting.md"
UNINSTALL = "docs/how-to/uninstall.md"
UPGRADE = "docs/how-to/upgrade.md"
PRESETS = "docs/how-to/presets.md"
PREFLIGHT = "docs/how-to/preflight.md"
BASE_MODEL = "docs/how-to/base-model.md"
CAPTIONS = "docs/how-to/captions.md"
AUDIT = "docs/how-to/audit.md"
LORA = "docs/how-to/lora.md"
JUDGE = "docs/how-to/judge-a-model.md"
CARD = "docs/how-to/model-page.md"
VALIDATION = "docs/how-to/validation.md"
LENGTH = "docs/how-to/ema-length.md"
CONTINUE = "docs/how-to/resume.md"

EXAMPLES: dict[str, tuple[str, str, str]] = {
    "": (START, f"install {KOHYA}", f"doctor {KOHYA}"),
    "install": (INSTALL, f"install {KOHYA} --dry-run", f"install {KOHYA} --python /venv/main"),
    "uninstall": (UNINSTALL, f"uninstall {KOHYA} --dry-run", f"uninstall {KOHYA}"),
    "status": (TROUBLE, f"status {KOHYA}", f"status {KOHYA} --hooks"),
    "doctor": (TROUBLE, f"doctor {KOHYA}", f"doctor {KOHYA} --python /venv/main"),
    "update": (UPGRADE, f"update {KOHYA} --dry-run", f"update {KOHYA}"),
    "presets": (PRESETS, "presets list", f"presets check --all {KOHYA}"),
    "presets list": (PRESETS, "presets list", "presets list --json"),
    "presets show": (PRESETS, "presets show AdaCoor-48GB", "presets show my-preset.json"),
    "presets diff": (PRESETS, "presets diff AdaCoor-48GB Lion-48GB", "presets diff AdaCoor-48GB my-preset.json"),
    "presets schema": (PRESETS, f"presets schema {KOHYA}", f"presets schema {KOHYA} --tab lora --json"),
    "presets check": (PRESETS, f"presets check --all {KOHYA}", f"presets check my-preset.json train.toml {KOHYA}"),
    "presets fit": (
        PRESETS,
        f"presets fit my-preset.json {KOHYA} --out fitted.json",
        f"presets fit AdaCoor-48GB {KOHYA} --out mine.json --dry-run",
    ),
    "presets command": (
        PRESETS,
        f"presets command AdaCoor-48GB {KOHYA} --data images --model {SDXL} --output out",
        f"presets command AdaCoor-24GB {KOHYA} --data images --model {SDXL} "
        "--output out --set max_train_epochs=9 --run",
    ),
    "presets rate": (
        PRESETS,
        "presets rate --like adamw 1e-4 --steps 2000",
        "presets rate --like adamw8bit 1e-5 --steps 6000 --json",
    ),
    "presets install": (PRESETS, f"presets install AdaCoor-48GB {KOHYA}", f"presets install {KOHYA} --dry-run"),
    "presets refit": (PRESETS, f"presets refit {KOHYA}", f"presets refit {KOHYA} --dry-run"),
    "preflight": (
        PREFLIGHT,
        f"preflight AdaCoor-24GB {KOHYA} --data images --card 24GB --price 0.4",
        f"preflight {KOHYA} --only data -- sdxl_train.py --train_data_dir=images --max_train_epochs=10",
    ),
    "base-model": (BASE_MODEL, f"base-model --to {KOHYA}/models", "base-model --dry-run"),
    "base-model build": (
        BASE_MODEL,
        f"base-model build sd_xl_base_1.0.safetensors --vae sdxl_vae.safetensors --out {SDXL}",
        f"base-model build sd_xl_base_1.0.safetensors --vae sdxl_vae.safetensors --out {SDXL} --dry-run",
    ),
    "captions": (CAPTIONS, "captions images --dry-run", "captions undo images"),
    "captions write": (CAPTIONS, "captions images --dry-run", "captions images --overwrite --keep-suffix"),
    "captions to-names": (CAPTIONS, "captions to-names images --dry-run", "captions to-names images"),
    "captions prefix": (
        CAPTIONS,
        'captions prefix images "photo of "',
        'captions prefix images "photo of " --remove',
    ),
    "captions replace": (
        CAPTIONS,
        "captions replace images garden park --words",
        'captions replace images "(\\d+) dogs" "\\1 cats" --regex',
    ),
    "captions undo": (CAPTIONS, "captions undo images --dry-run", "captions undo images --keep-edited"),
    "captions check": (CAPTIONS, "captions check images --token ewpp", "captions check images --in-json meta_lat.json"),
    "audit": (AUDIT, "audit images --html audit.html", "audit images --in-json meta_lat.json --resolution 1024,1024"),
    "lora": (
        LORA,
        f"lora extract --base {SDXL} --tuned dog.safetensors --out dog-lora.safetensors",
        "lora resize dog-lora.safetensors dog-lora-32.safetensors --rank 32",
    ),
    "lora extract": (
        LORA,
        f"lora extract --base {SDXL} --tuned dog.safetensors --out dog-lora.safetensors --rank 128",
        f"lora extract --base {SDXL} --tuned dog.safetensors --out dog-lora.safetensors --size 100MB --dry-run",
    ),
    "lora resize": (
        LORA,
        "lora resize dog-lora.safetensors dog-lora-32.safetensors --rank 32",
        "lora resize dog-lora.safetensors small.safetensors --rank 64 --dynamic sv_fro --param 0.9",
    ),
    "ema": (LENGTH, "ema list out", "ema sweep out --sigma-rel 0.03:0.25:6 --out lengths"),
    "ema list": (LENGTH, "ema list out", "ema list out/mine-ema.safetensors out/mine-ema-000010.safetensors --json"),
    "ema reconstruct": (
        LENGTH,
        "ema reconstruct out --sigma-rel 0.15 --out mine-wide.safetensors",
        "ema reconstruct out --decay 0.999 --step 2000 --out mine-2000.safetensors --dry-run",
    ),
    "ema sweep": (
        LENGTH,
        "ema sweep out --sigma-rel 0.03:0.25:6 --out lengths",
        "ema sweep out --sigma-rel 0.05:0.15:3 --out lengths --dry-run",
    ),
    "ema merge": (
        LENGTH,
        "ema merge epochs --sigma-rel 0.25 --out merged.safetensors",
        "ema merge a-000008.safetensors a-000009.safetensors a.safetensors --sigma-rel 0.1 --out merged.safetensors",
    ),
    "resume": (CONTINUE, "resume out", "resume out --name mine --run"),
    "prompts": (JUDGE, "prompts images --trigger ewpp --output prompts.txt", "prompts images --held-out held-out"),
    "grid": (
        JUDGE,
        "grid dog.safetensors --prompts prompts.txt --output sheet --images images --held-out held-out",
        f"grid dog-lora.safetensors --base {SDXL} --weight 0.8 --prompts prompts.txt --output sheet --limit 2",
    ),
    "card": (
        CARD,
        "card dog-lora.safetensors --output dog-lora.md --trigger ewpp",
        "card dog.safetensors --preset AdaCoor-48GB --for huggingface --output README.md",
    ),
    "report": (VALIDATION, "report out", "report out --name dog --logs logs --html dog.html"),
    "demo": ("README.md", "demo", "demo --out demo-run --steps 100"),
}  # fmt: skip


def examples(program: str) -> str:
    """The last lines of the help of `program` ("kohya-ext lora extract"); "" for a parser that is not in the table."""
    name, _, words = program.partition(" ")
    if words not in EXAMPLES:
        return ""
    page, *lines = EXAMPLES[words]
    shown = "".join(f"  {name} {line}\n" for line in lines)
    return f"\nexamples:\n{shown}\nmore: {REPOSITORY}/blob/main/{page}\n"
