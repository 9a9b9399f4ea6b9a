"""The main job on real input: the real scripts, patched by our installer, train with AdaCoor and save a right EMA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.upstream import rig
from tests.upstream.test_every_release import kohya_ext

pytestmark = pytest.mark.upstream

STEPS = 4
DECAY = 0.9
SDXL = ["sdxl"]
LORA = ["net", "sdxl_train_network.py", "tiny_sdxl.safetensors"]
FINE_TUNE = ["ft"]
COMMON = (f"--max_train_steps={STEPS}", "--mixed_precision=no", "--save_precision=float")
KINDS = {
    "sdxl_train": (SDXL, ("--learning_rate=1", "--train_text_encoder")),
    "sdxl_train_network": (LORA, ("--learning_rate=1", "--network_train_unet_only")),
    "fine_tune": (FINE_TUNE, ("--learning_rate=1", "--train_text_encoder")),
}
OURS = (
    "--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8", "--enable_ema", f"--ema_decay={DECAY}",
    "--save_every_n_steps=1",
)  # fmt: skip

# time, session and name: two runs of upstream itself differ in these
VOLATILE = {
    "ss_training_started_at", "ss_training_finished_at", "ss_session_id", "ss_output_name", "modelspec.date",
    "modelspec.title", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash",
}  # fmt: skip


@pytest.fixture(scope="module", params=list(rig.TREES))
def patched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of one real tree with the `hook` patch set in it, and the environment that runs it."""
    rig.require_rig(request.param)
    tree = rig.copy_tree(request.param, tmp_path_factory.mktemp("patched") / request.param)
    done = kohya_ext("install", str(tree), "--no-package", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    return tree, rig.TREES[request.param]


Train = Callable[..., rig.Run]


@pytest.fixture(params=list(KINDS))
def job(request: pytest.FixtureRequest, patched: tuple[Path, str]) -> Train:
    """Trains one kind of run on the patched tree (or another) and asserts that it exits 0."""
    kind, flags = KINDS[request.param]

    def train(name: str, *more: str, tree: Path | None = None) -> rig.Run:
        label = f"{patched[0].name}-{request.param}-{name}"
        run = rig.train(tree or patched[0], patched[1], kind, label, *COMMON, *flags, *more)
        assert run.returncode == 0, run.output[-4000:]
        return run

    return train


def averages(start: dict[str, torch.Tensor], raw: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The constant schedule by its definition, in float64: s_0 = start, s_t = d s_(t-1) + (1-d) p_t."""
    shadow = {key: value.double() for key, value in start.items()}
    result = []
    for weights in raw:
        shadow = {key: DECAY * shadow[key] + (1 - DECAY) * weights[key].double() for key in shadow}
        result.append(shadow)
    return result


def assert_same_to_rounding(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> None:
    """fp32 rounding: one unit in the last place of the largest value for each of the updates, in every tensor."""
    assert ours.keys() == exact.keys()
    for key, value in exact.items():
        bound = STEPS * torch.finfo(torch.float32).eps * max(1e-30, float(value.abs().max()))
        error = float((ours[key].double() - value).abs().max())
        assert error <= bound, f"{key}: {error} > {bound}"


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, f"{len(different)} of {len(a)} tensors differ"


def test_trains_with_adacoor_and_saves_the_right_average(job: Train) -> None:
    run = job("constant", *OURS, "--ema_schedule=constant")
    # a learning rate of next to nothing leaves the start weights as they are, and saves them
    start = job("start", "--optimizer_type=SGD", "--learning_rate=1e-30", "--save_every_n_steps=1").tensors(
        "-step00000001"
    )
    raw = [run.tensors(f"-step{step:08d}") for step in range(1, STEPS + 1)]
    assert any(not torch.equal(raw[0][key], start[key]) for key in start), "the run has not trained"
    for step, exact in enumerate(averages(start, raw), 1):
        assert_same_to_rounding(run.tensors(f"-ema-step{step:08d}"), exact)
    assert_identical(run.tensors(), raw[-1])
    assert_identical(run.tensors("-ema"), run.tensors(f"-ema-step{STEPS:08d}"))
    assert run.metadata("-ema")["kohya_ext_ema_decay"] == str(DECAY)
    assert "kohya_ext_ema_decay" not in run.metadata()


def test_accumulation_counts_real_steps_only(job: Train) -> None:
    run = job("accumulate", *OURS, "--ema_schedule=debiased", "--gradient_accumulation_steps=2")
    raw = [run.tensors(f"-step{step:08d}") for step in range(1, STEPS + 1)]
    weights = [DECAY ** (STEPS - step) for step in range(1, STEPS + 1)]
    exact = {key: sum(w * p[key].double() for w, p in zip(weights, raw, strict=True)) / sum(weights) for key in raw[0]}
    assert_same_to_rounding(run.tensors("-ema"), exact)


def test_without_our_flags_nothing_differs(job: Train, patched: tuple[Path, str]) -> None:
    """Promise 8, for an optimizer of upstream's: all tensors bit for bit, metadata but for the listed keys."""
    untouched = rig.work() / "trees" / patched[0].name
    plain = job("unpatched", "--optimizer_type=AdamW", "--learning_rate=1e-4", tree=untouched)
    ours = job("patched", "--optimizer_type=AdamW", "--learning_rate=1e-4")
    assert_identical(plain.tensors(), ours.tensors())
    a, b = plain.metadata(), ours.metadata()
    assert {k: v for k, v in a.items() if k not in VOLATILE} == {k: v for k, v in b.items() if k not in VOLATILE}
