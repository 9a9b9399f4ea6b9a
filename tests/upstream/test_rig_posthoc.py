"""EMAs of other lengths, made of what real runs saved, against the float64 average of the raw weights of every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from kohya_ext.ema.posthoc import ema_profile
from kohya_ext.ema.schedules import Power
from kohya_ext.posthoc.reconstruction import plan, target_of, write
from kohya_ext.posthoc.snapshots import read_run
from tests.upstream import rig
from tests.upstream.rig_bench import ADACOOR, EVERY_STEP, MAIN, NEWEST, OLD, Bench, Weights, remove

pytestmark = pytest.mark.upstream

STEPS = 64
WIDTHS = (0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


@pytest.mark.parametrize(
    ("tree", "kind", "schedule"),
    [
        (MAIN, "lora", ("--ema_schedule=power", "--ema_sigma_rel=0.1")),
        (NEWEST, "lora", ("--ema_decay=0.9",)),
        (OLD, "lora", ("--ema_schedule=power", "--ema_sigma_rel=0.07")),
        (MAIN, "full", ("--ema_schedule=power", "--ema_sigma_rel=0.1")),
        (MAIN, "lora", ("--ema_schedule=power", "--ema_sigma_rel", "0.05", "0.2")),
        (OLD, "full", ("--ema_schedule=power", "--ema_sigma_rel", "0.05", "0.2")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_the_error_is_within_what_is_told(bench: Bench, tree: str, kind: str, schedule: tuple[str, ...]) -> None:
    run = bench.train(
        tree, kind, "posthoc", "--enable_ema", *schedule, *EVERY_STEP, f"--max_train_steps={STEPS}",
        "--save_precision=float",
    )  # fmt: skip
    raw = run.at_steps(STEPS)
    trained = [key for key in raw[0] if raw[0][key].is_floating_point() and not torch.equal(raw[0][key], raw[-1][key])]
    found = []
    for count in (8, 16):
        every = STEPS // count
        saved = [
            run.folder / f"{run.name}{suffix}-step{step:08d}.safetensors"
            for suffix in ("-ema", "-ema2")[: 1 + ("0.2" in schedule)]
            for step in range(every, STEPS + 1, every)
        ]
        snapshots = read_run(saved)
        for sigma_rel in WIDTHS:
            made = plan(snapshots, target_of(snapshots, sigma_rel=sigma_rel))
            write(made, run.folder / "new.safetensors")
            new = load_file(run.folder / "new.safetensors")
            error = distance(new, raw, trained, sigma_rel)
            found.append((count, sigma_rel, error, made.mixture.error, made.mixture.bound + 2 * made.mixture.rounding))
    print(
        *(
            f"{count:>3} {width:.2f} {error:8.3%} told {told:8.3%} {bound:8.3%}"
            for count, width, error, told, bound in found
        ),
        sep="\n",
    )
    assert all(error <= bound for _, _, error, _, bound in found), found
    remove(run)


# kind of run -> how much of ||EMA - raw|| 16 snapshots may miss from .05 to .12
SNAPSHOTS = [
    (MAIN, "lora", "float32", 0.01),
    (MAIN, "full", "float32", 0.01),
    (MAIN, "flux", "float32", 0.01),
    (OLD, "lora", "float16", 0.01),
    (NEWEST, "full", "float16", 0.01),
    (NEWEST, "lora", "bfloat16", 0.05),
]


@pytest.mark.parametrize(("tree", "kind", "dtype", "most"), SNAPSHOTS)
def test_snapshots_of_two_widths_give_every_other(bench: Bench, tree: str, kind: str, dtype: str, most: float) -> None:
    """Written every 2 steps, of which every 4th and 8th are taken too; the model is saved after every step."""
    flags = (
        "--enable_ema", "--ema_schedule=power", "--ema_sigma_rel", "0.05", "0.1", "--ema_snapshot_every=2",
        f"--ema_snapshot_dtype={dtype}", *EVERY_STEP, f"--max_train_steps={STEPS}", "--save_precision=float",
    )  # fmt: skip
    if kind == "flux":
        network = ("--network_module=networks.lora_flux", "--network_dim=4", "--network_train_unet_only")
        run = rig.train_family(
            bench.tree(tree), rig.environment(tree), f"{tree}-flux-snapshots", "flux_train_network.py", *ADACOOR,
            "--learning_rate=1", "--cache_text_encoder_outputs", *network, *flags,
        )  # fmt: skip
        assert run.returncode == 0, run.output[-4000:]
    else:
        run = bench.train(tree, kind, "snapshots", *flags)
    raw = run.at_steps(STEPS)
    trained = [key for key in raw[0] if raw[0][key].is_floating_point() and not torch.equal(raw[0][key], raw[-1][key])]
    found = read_run([run.folder])
    assert len(found.snapshots) == STEPS and all(one.stored for one in found.snapshots)
    errors = []
    for count in (8, 16, 32):
        some = tuple(one for one in found.snapshots if one.step % (STEPS // count) == 0)
        for sigma_rel in (0.03, *WIDTHS):
            made = plan(replace(found, snapshots=some), target_of(found, sigma_rel=sigma_rel))
            write(made, run.folder / "new.safetensors")
            error = distance(load_file(run.folder / "new.safetensors"), raw, trained, sigma_rel)
            errors.append((count, sigma_rel, error, made.mixture.error, made.mixture.rounding, made.mixture.worst))
    print(f"\n{tree} {kind} {dtype}")
    print(*("{:>3} {:.2f} {:8.3%} told {:8.3%} and {:8.3%} rounding, bound {:8.3%}".format(*row) for row in errors),
          sep="\n")  # fmt: skip
    assert all(error <= worst for _, _, error, _, _, worst in errors), errors
    assert all(error <= most for count, width, error, *_ in errors if count == 16 and 0.05 <= width <= 0.12), errors
    remove(run)


def distance(new: Weights, raw: list[Weights], trained: list[str], sigma_rel: float) -> float:
    """From the true EMA, as a part of its distance from the raw weights."""
    profile = ema_profile(Power(sigma_rel), STEPS, STEPS)
    off = whole = 0.0
    for key in trained:
        truth = sum(float(share) * weights[key].double() for share, weights in zip(profile[1:], raw, strict=True))
        off += float((new[key].double() - truth).square().sum())
        whole += float((raw[-1][key].double() - truth).square().sum())
    return (off / whole) ** 0.5
