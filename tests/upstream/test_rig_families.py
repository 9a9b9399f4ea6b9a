"""The scripts of the newer families, tiny: what each saves from the EMA is the average of what it saves raw."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.upstream import rig
from tests.upstream.ema_results import recorded
from tests.upstream.rig_bench import (
    EMA,
    LAUNCH,
    MAIN,
    NEWEST,
    STEPS,
    Bench,
    assert_identical,
    assert_same_to_rounding,
    average,
    debiased,
    different,
    remove,
)

pytestmark = pytest.mark.upstream

ADACOOR = ("--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8", "--learning_rate=1")
COMMON = (f"--max_train_steps={STEPS}", "--save_every_n_steps=1", "--cache_text_encoder_outputs", *EMA)
NETWORK = ("--network_dim=4", "--network_train_unet_only")

FULL_BF16, BF16_ROUNDING = "--full_bf16", 2**-8
HUNYUAN = "hunyuan_image_train_network"
# script -> its own flags
SCRIPTS: dict[str, tuple[str, ...]] = {
    "flux_train": (),
    "flux_train_network": ("--network_module=networks.lora_flux", *NETWORK),
    "flux_train_control_net": (),
    "sd3_train": (),
    "sd3_train_network": ("--network_module=networks.lora_sd3", *NETWORK),
    "lumina_train": (),
    "lumina_train_network": ("--network_module=networks.lora_lumina", *NETWORK),
    "anima_train": ("--attn_mode=torch",),
    "anima_train_network": ("--attn_mode=torch", "--network_module=networks.lora_anima", *NETWORK),
    "anima_train_control_net_lllite": ("--attn_mode=torch",),
    HUNYUAN: ("--network_module=networks.lora_hunyuan_image", *NETWORK),
}
CONTROL_NETS = ("flux_train_control_net", "anima_train_control_net_lllite")
RUNS = [
    (tree, script) for tree in (MAIN, NEWEST) for script in SCRIPTS
    if (tree, script) != (MAIN, "anima_train_control_net_lllite")
]  # fmt: skip
# Each of what a family's script may be told besides, once. Blocks are swapped only under a LoRA: on a CPU upstream's
# swap exchanges memory that is one and the same, so that blocks in training would become copies of each other.
EXTRAS = [
    (MAIN, "flux_train", ("--fused_backward_pass", "--max_grad_norm=0")),
    (MAIN, "flux_train", (FULL_BF16, "--mixed_precision=bf16")),
    (MAIN, "flux_train_network", ("--gradient_accumulation_steps=2",)),
    (NEWEST, "flux_train_network", ("--mixed_precision=bf16",)),
    (MAIN, "sd3_train", ("--gradient_accumulation_steps=2",)),
    (MAIN, "sd3_train", ("--fused_backward_pass", "--max_grad_norm=0")),
    (NEWEST, "sd3_train_network", ("--mixed_precision=bf16",)),
    (MAIN, "lumina_train", ("--fused_backward_pass", "--max_grad_norm=0")),
    (NEWEST, "lumina_train", (FULL_BF16, "--mixed_precision=bf16")),
    (NEWEST, "lumina_train_network", ("--gradient_accumulation_steps=2",)),
    (MAIN, "anima_train_network", ("--mixed_precision=bf16",)),
    (MAIN, HUNYUAN, ("--blocks_to_swap=8", "--gradient_checkpointing")),
    (NEWEST, HUNYUAN, ("--gradient_accumulation_steps=2",)),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


@pytest.mark.parametrize(("tree", "script"), RUNS)
def test_what_it_saves_is_the_average(bench: Bench, tree: str, script: str) -> None:
    with recorded(script, tree):
        check(bench, tree, script)


@pytest.mark.parametrize(
    ("tree", "script", "flags"), EXTRAS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_with_what_else_there_is(bench: Bench, tree: str, script: str, flags: tuple[str, ...]) -> None:
    check(bench, tree, script, *flags)


def check(bench: Bench, tree: str, script: str, *flags: str) -> None:
    run = train(bench, tree, script, *ADACOOR, *COMMON, *SCRIPTS[script], *flags)
    assert run.returncode == 0, run.output[-4000:]
    raw = run.at_steps(STEPS)
    assert_identical(run.tensors(), raw[-1])
    assert different(raw[0], raw[-1]), "the run has not trained"
    for step, ours in enumerate(run.at_steps(STEPS, "-ema"), 1):
        wanted = average(raw[0], raw[:step], debiased)
        if FULL_BF16 in flags:  # the average passes through weights of that dtype on its way to the file
            for key, exact in wanted.items():
                torch.testing.assert_close(ours[key].double(), exact, rtol=BF16_ROUNDING, atol=0)
        else:
            assert_same_to_rounding(ours, wanted)
    assert_identical(run.tensors("-ema"), run.tensors(f"-ema-step{STEPS:08d}"))
    assert different(run.tensors("-ema"), raw[-1])
    remove(run)


def train(bench: Bench, tree: str, script: str, *flags: str) -> rig.Run:
    name = f"{tree}-{script}"
    if script == HUNYUAN:
        return train_hunyuan_image(bench, tree, name, *flags)
    if script in CONTROL_NETS:
        conditions = bench.folder / f"{name}-conditions"
        images = copy_images(bench.folder / f"{name}-data")
        shutil.copytree(images, conditions, ignore=shutil.ignore_patterns("*.txt"), dirs_exist_ok=True)
        flags = (*flags, f"--train_data_dir={images}", f"--conditioning_data_dir={conditions}")
    return rig.train_family(bench.tree(tree), rig.environment(tree), name, f"{script}.py", *flags)


def train_hunyuan_image(bench: Bench, tree: str, name: str, *flags: str) -> rig.Run:
    root, environment, model = bench.tree(tree), rig.environment(tree), bench.folder / "hunyuan_image.safetensors"
    if not model.is_file():
        words = [*rig.python(root, environment), str(LAUNCH.with_name("rig_hunyuan_image.py")), str(model)]
        subprocess.run(words, check=True, timeout=300)
    data = bench.folder / f"{name}-data"
    copy_images(data / "1_rig")
    return rig.run_script(
        root, environment, name, f"{HUNYUAN}.py", f"--pretrained_model_name_or_path={model}", "--vae=none",
        "--text_encoder=none", "--byt5=none", f"--train_data_dir={data}", "--caption_extension=.txt",
        "--resolution=256,256", "--save_model_as=safetensors", "--train_batch_size=1", "--seed=1",
        "--max_data_loader_n_workers=0", "--mixed_precision=no", "--save_precision=float", "--cache_latents", "--sdpa",
        *flags, launch=f"{LAUNCH} small_hunyuan_image",
    )  # fmt: skip


def copy_images(folder: Path) -> Path:
    assets = rig.work() / "assets" / "data" / "1_rig"
    shutil.copytree(assets, folder, ignore=shutil.ignore_patterns("*.npz"), dirs_exist_ok=True)
    return folder
