"""EMAs of other lengths, made of what real runs saved, against the float64 average of the raw weights of every step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from kohya_ext.ema.posthoc import ema_profile
from kohya_ext.ema.schedules import Power
from kohya_ext.posthoc.reconstruction import plan, target_of, write
from kohya_ext.posthoc.snapshots import read_run
from tests.upstream.rig_bench import EVERY_STEP, MAIN, NEWEST, OLD, Bench, Weights, remove

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


def distance(new: Weights, raw: list[Weights], trained: list[str], sigma_rel: float) -> float:
    """From the true EMA, as a part of its distance from the raw weights."""
    profile = ema_profile(Power(sigma_rel), STEPS, STEPS)
    off = whole = 0.0
    for key in trained:
        truth = sum(float(share) * weights[key].double() for share, weights in zip(profile[1:], raw, strict=True))
        off += float((new[key].double() - truth).square().sum())
        whole += float((raw[-1][key].double() - truth).square().sum())
    return (off / whole) ** 0.5
