"""The scripts of the newer families, tiny: what each saves from the EMA is the average of what it saves raw."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upstream import rig
from tests.upstream.rig_bench import (
    EMA,
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

# script -> its own flags
SCRIPTS: dict[str, tuple[str, ...]] = {
    "flux_train": (),
    "flux_train_network": ("--network_module=networks.lora_flux", *NETWORK),
    "sd3_train": (),
    "sd3_train_network": ("--network_module=networks.lora_sd3", *NETWORK),
    "lumina_train": (),
    "lumina_train_network": ("--network_module=networks.lora_lumina", *NETWORK),
    "anima_train": ("--attn_mode=torch",),
    "anima_train_network": ("--attn_mode=torch", "--network_module=networks.lora_anima", *NETWORK),
}
RUNS = [(tree, script) for tree in (MAIN, NEWEST) for script in SCRIPTS]
# each of what a family's script may be told besides, once; the tiny models have too few blocks to swap any
EXTRAS = [
    (MAIN, "flux_train", ("--fused_backward_pass", "--max_grad_norm=0")),
    (MAIN, "flux_train_network", ("--gradient_accumulation_steps=2",)),
    (MAIN, "sd3_train", ("--gradient_accumulation_steps=2",)),
    (MAIN, "sd3_train", ("--fused_backward_pass", "--max_grad_norm=0")),
    (MAIN, "lumina_train", ("--fused_backward_pass", "--max_grad_norm=0")),
    (NEWEST, "lumina_train_network", ("--gradient_accumulation_steps=2",)),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


@pytest.mark.parametrize(("tree", "script"), RUNS)
def test_what_it_saves_is_the_average(bench: Bench, tree: str, script: str) -> None:
    check(bench, tree, script)


@pytest.mark.parametrize(
    ("tree", "script", "flags"), EXTRAS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_with_what_else_there_is(bench: Bench, tree: str, script: str, flags: tuple[str, ...]) -> None:
    check(bench, tree, script, *flags)


def check(bench: Bench, tree: str, script: str, *flags: str) -> None:
    run = rig.train_family(bench.tree(tree), rig.environment(tree), f"{tree}-{script}", f"{script}.py",
                           *ADACOOR, *COMMON, *SCRIPTS[script], *flags)  # fmt: skip
    assert run.returncode == 0, run.output[-4000:]
    raw = run.at_steps(STEPS)
    assert_identical(run.tensors(), raw[-1])
    assert different(raw[0], raw[-1]), "the run has not trained"
    for step, ours in enumerate(run.at_steps(STEPS, "-ema"), 1):
        assert_same_to_rounding(ours, average(raw[0], raw[:step], debiased))
    assert_identical(run.tensors("-ema"), run.tensors(f"-ema-step{STEPS:08d}"))
    assert different(run.tensors("-ema"), raw[-1])
    remove(run)
