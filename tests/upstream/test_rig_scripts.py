"""The other real training scripts on the rig: what each saves from the EMA is the average of what it saves raw."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream import rig
from tests.upstream.ema_results import recorded
from tests.upstream.rig_bench import (
    EMA,
    LAUNCH,
    MAIN,
    MIDDLE,
    NEWEST,
    OLD,
    OLDEST,
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

COMMON = (
    f"--max_train_steps={STEPS}", "--mixed_precision=no", "--save_precision=float", "--seed=1",
    "--save_every_n_steps=1", "--optimizer_type=AdamW", "--learning_rate=1e-3", "--save_model_as=safetensors",
)  # fmt: skip
DATA = ("--resolution=256,256", "--enable_bucket", "--caption_extension=.txt", "--train_batch_size=1",
        "--max_data_loader_n_workers=0")  # fmt: skip
TOKENS = ("--token_string=zqxj", "--init_word=pattern", "--num_vectors_per_token=2", "--use_object_template")
LLLITE = ("--cond_emb_dim=8", "--network_dim=4")
SMALL = f"{LAUNCH} small_control_nets"
CONTROL_NETS = ("train_controlnet", "train_control_net", "sdxl_train_control_net")
PROMPTS = """
[[prompts]]
target = "a red circle"
positive = "a red circle"
action = "erase"
resolution = 128
"""

# script -> the model it starts from, its own flags, and the kind of data it takes
SCRIPTS = {
    "fine_tune": ("sd15", ("--train_text_encoder", "--cache_latents"), "metadata"),
    "sdxl_train": ("sdxl", ("--train_text_encoder",), "images"),
    "sdxl_train_network": ("sdxl", ("--network_module=networks.lora", "--network_dim=4"), "images"),
    "train_db": ("sd15", (), "images"),
    "train_network": ("sd15", ("--network_module=networks.lora", "--network_dim=4"), "images"),
    "train_textual_inversion": ("sd15", TOKENS, "images"),
    "train_textual_inversion_XTI": ("sd15", TOKENS, "images"),
    "sdxl_train_textual_inversion": ("sdxl", TOKENS, "images"),
    "train_control_net": ("sd15", (), "conditions"),
    "train_controlnet": ("sd15", (), "conditions"),
    "sdxl_train_control_net": ("sdxl", (), "conditions"),
    "sdxl_train_control_net_lllite": ("sdxl", LLLITE, "conditions"),
    "sdxl_train_control_net_lllite_old": ("sdxl", LLLITE, "conditions"),
    "train_leco": ("sd15", ("--max_denoising_steps=4", "--network_dim=4"), "prompts"),
    "sdxl_train_leco": ("sdxl", ("--max_denoising_steps=4", "--network_dim=4"), "prompts"),
}

# Which of them run on the rig. With or without us, these do not: the ControlNets of v22.3.1 (its data set asks for an
# argument that nobody gives), what imports open_clip there, and in main LLLite's old script and XTI (no tokenizer).
RUNS = [
    (MAIN, "train_db"),
    (NEWEST, "train_db"),
    (OLD, "train_db"),
    (MAIN, "train_network"),
    (NEWEST, "train_network"),
    (OLD, "train_network"),
    (MAIN, "train_textual_inversion"),
    (NEWEST, "train_textual_inversion"),
    (OLD, "train_textual_inversion"),
    (MAIN, "sdxl_train_textual_inversion"),
    (NEWEST, "sdxl_train_textual_inversion"),
    (OLD, "train_textual_inversion_XTI"),
    (MAIN, "train_control_net"),
    (NEWEST, "train_control_net"),
    (MAIN, "train_controlnet"),
    (MAIN, "sdxl_train_control_net"),
    (NEWEST, "sdxl_train_control_net"),
    (MAIN, "sdxl_train_control_net_lllite"),
    (NEWEST, "sdxl_train_control_net_lllite"),
    (NEWEST, "train_leco"),
    (NEWEST, "sdxl_train_leco"),
    (MIDDLE, "fine_tune"),
    (MIDDLE, "sdxl_train"),
    (MIDDLE, "train_db"),
    (MIDDLE, "sdxl_train_network"),
    (MIDDLE, "train_network"),
    (MIDDLE, "train_textual_inversion"),
    (MIDDLE, "train_textual_inversion_XTI"),
    (MIDDLE, "sdxl_train_textual_inversion"),
    (MIDDLE, "train_controlnet"),
    (MIDDLE, "sdxl_train_control_net_lllite"),
    (MIDDLE, "sdxl_train_control_net_lllite_old"),
    (OLDEST, "fine_tune"),
    (OLDEST, "train_db"),
    (OLDEST, "train_network"),
    (OLDEST, "train_textual_inversion"),
    (OLDEST, "train_textual_inversion_XTI"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


def flags_of(script: str, folder: Path) -> tuple[str, ...]:
    model, own, kind = SCRIPTS[script]
    assets = rig.work() / "assets"
    flags = [f"--pretrained_model_name_or_path={assets}/tiny_{model}.safetensors", *COMMON, *own]
    flags.append(f"--tokenizer_cache_dir={assets / 'tokenizers'}")
    if kind == "prompts":
        (folder / "prompts.toml").write_text(PROMPTS)
        return (*flags, f"--prompts_file={folder / 'prompts.toml'}")
    images = folder / "data" / "1_rig"
    shutil.copytree(assets / "data" / "1_rig", images, ignore=shutil.ignore_patterns("*.npz"))
    flags += [*DATA, *(["--no_half_vae"] if model == "sdxl" else [])]
    if kind == "metadata":
        return (*flags, f"--train_data_dir={images}", f"--in_json={assets}/meta_lat.json")
    if kind == "images":
        return (*flags, f"--train_data_dir={images.parent}")
    shutil.copytree(images, folder / "conditions", ignore=shutil.ignore_patterns("*.txt"))
    return (*flags, f"--train_data_dir={images}", f"--conditioning_data_dir={folder / 'conditions'}")


@pytest.mark.parametrize(("tree", "script"), RUNS)
def test_what_it_saves_is_the_average(bench: Bench, tree: str, script: str, tmp_path: Path) -> None:
    launch = SMALL if script in CONTROL_NETS else ""
    if tree == OLDEST:
        launch = f"{LAUNCH} of_2023_spring"
    elif script.endswith("XTI") and tree != OLD:
        launch = f"{LAUNCH} older_diffusers"
    # LECO leaves the save of the last step to the end
    counted = STEPS - 1 if script.endswith("leco") else STEPS
    with recorded(script, tree):
        check(bench, tree, script, *flags_of(script, tmp_path), launch=launch, counted=counted)


@pytest.mark.parametrize("module", ["networks.dylora", "networks.lora_fa", "networks.oft"])
def test_other_networks(bench: Bench, module: str, tmp_path: Path) -> None:
    """LoRA-FA keeps one of its two matrices frozen; the others save what they compute from their parameters."""
    flags = (*flags_of("train_network", tmp_path), f"--network_module={module}")
    check(bench, MAIN, "train_network", *flags, counted=STEPS)


def check(bench: Bench, tree: str, script: str, *flags: str, counted: int, launch: str = "") -> None:
    """Run it and compare the average after every step; the first `counted` steps have files of their own."""
    ema = (*EMA, "--ema_schedule=debiased")
    root = bench.tree(tree)
    run = rig.run_script(root, rig.environment(tree), f"{tree}-{script}", f"{script}.py", *flags, *ema, launch=launch)
    assert run.returncode == 0, run.output[-4000:]
    raw = run.at_steps(counted)
    raw += [run.tensors()] if counted < STEPS else []
    assert_identical(run.tensors(), raw[-1])
    assert different(raw[0], raw[-1]), "the run has not trained"
    for step, ours in enumerate(run.at_steps(counted, "-ema"), 1):
        assert_same_to_rounding(ours, average(raw[0], raw[:step], debiased))
    assert_same_to_rounding(run.tensors("-ema"), average(raw[0], raw, debiased))
    assert run.metadata("-ema")["kohya_ext_ema_steps"] == str(STEPS)
    assert different(run.tensors("-ema"), raw[-1])
    remove(run)


@pytest.mark.parametrize(
    ("tree", "script"), [(OLD, "train_textual_inversion"), (NEWEST, "sdxl_train_control_net_lllite")]
)
def test_only_the_average(bench: Bench, tree: str, script: str, tmp_path: Path) -> None:
    """Under the plain name; old files go as upstream's rules say."""
    flags = (*flags_of(script, tmp_path), *EMA, "--save_last_n_steps=1")
    runs = [
        rig.run_script(
            bench.tree(tree), rig.environment(tree), f"{tree}-{script}-{save}", f"{script}.py", *flags, *more
        )
        for save, more in (("beside", ()), ("only", ("--ema_save=only",)))
    ]
    beside, only = runs
    assert [run.returncode for run in runs] == [0, 0], beside.output[-2000:] + only.output[-2000:]
    kept = ["", "-step00000003", "-step00000004"]
    assert sorted(path.name for path in only.folder.iterdir()) == sorted(f"{only.name}{k}.safetensors" for k in kept)
    assert {path.name for path in beside.folder.iterdir()} == {
        f"{beside.name}{ema}{k}.safetensors" for k in kept for ema in ("", "-ema")
    }
    for name in kept:
        assert_identical(only.tensors(name), beside.tensors(f"-ema{name}"))
    for run in runs:
        remove(run)
