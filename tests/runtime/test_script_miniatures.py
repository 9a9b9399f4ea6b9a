"""Scripts that save in ways of their own, as miniatures: what each saves from the EMA is the average of what it saves.

As in tests/miniatures, only names, signatures and the order of calls are Kohya's, the rest is a toy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.demo.checkout import exists, render
from kohya_ext.install import apply
from tests.miniatures.build import build, training_root
from tests.miniatures.run import Launcher, Run

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

TEMPLATES = Path(__file__).resolve().parents[1] / "miniatures" / "scripts"
DECAY, STEPS = 0.9, 4
EMA = ["--enable_ema", f"--ema_decay={DECAY}", "--ema_schedule=debiased"]
USUAL = ["--seed=3", f"--max_train_steps={STEPS}", "--save_model_as=safetensors", "--save_precision=float",
         "--optimizer_type=AdamW", "--learning_rate=0.1", "--output_name=dog", "--save_every_n_steps=1"]  # fmt: skip

INVERSION, TWO_ENCODERS = "train_textual_inversion", "sdxl_train_textual_inversion"
CONTROL_NET, LLLITE = "train_control_net", "sdxl_train_control_net_lllite"
ANIMA, LECO = "anima_train_control_net_lllite", "train_leco"
ALL = [
    *[(era, INVERSION) for era in ("v06", "v22", "v24", "v26")],
    *[(era, script) for era in ("v22", "v24", "v26") for script in (TWO_ENCODERS, CONTROL_NET, LLLITE)],
    ("v26", ANIMA),
    ("v26", LECO),
]


class Bench:
    """Miniatures with the small scripts in them, patched by the real installer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.launcher, self.count = folder, Launcher(), 0
        self.tree = cache(self._tree)

    def _tree(self, era: str) -> Path:
        root = build(era, self.folder / era)
        for path in sorted(TEMPLATES.rglob("*.in")):
            template = path.read_text(encoding="utf-8")
            if exists(template, era):
                (training_root(root) / path.relative_to(TEMPLATES).with_suffix("")).write_text(render(template, era))
        apply.install(describe(root), patch_set="hook")
        return training_root(root)

    def run(self, era: str, script: str, *flags: str) -> Run:
        self.count += 1
        run = self.launcher.run(self.tree(era) / f"{script}.py", [*USUAL, *flags], self.folder / f"run {self.count}")
        assert run.code == 0, run.log
        return run


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("scripts"))
    yield made
    made.launcher.close()


def steps_of(run: Run, script: str, name: str = "dog") -> list[dict[str, Any]]:
    """The weights after each step; LECO saves those of the last under the plain name only."""
    counted = STEPS - 1 if script == LECO else STEPS
    return [run.tensors(f"{name}-step{step:08d}") for step in range(1, counted + 1)] + [run.tensors(name)]


def assert_average(raw: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    for done in range(1, STEPS + 1):
        powers = [DECAY ** (done - step) for step in range(1, done + 1)]
        for name in raw[0]:
            pairs = zip(powers, raw[:done], strict=True)
            exact = sum(power * weights[name].double() for power, weights in pairs) / sum(powers)
            torch.testing.assert_close(ours[done - 1][name].double(), exact, rtol=0, atol=4e-7)


@pytest.mark.parametrize(("era", "script"), ALL)
def test_what_it_saves_is_the_average(bench: Bench, era: str, script: str) -> None:
    run = bench.run(era, script, *EMA)
    raw, ours = steps_of(run, script), steps_of(run, script, "dog-ema")
    assert any(not torch.equal(raw[0][name], raw[-1][name]) for name in raw[0]), "the run trained nothing"
    assert_average(raw, ours)
    assert run.metadata("dog-ema")["kohya_ext_ema_steps"] == str(STEPS)
    assert "kohya_ext_ema_steps" not in run.metadata("dog")
    plain = bench.run(era, script)
    for name, weights in plain.tensors("dog").items():
        assert torch.equal(weights, run.tensors("dog")[name]), "the EMA has changed the run"
    assert set(run.metadata("dog")) == set(plain.metadata("dog"))


@pytest.mark.parametrize(("era", "script"), [("v22", INVERSION), ("v24", CONTROL_NET), ("v26", ANIMA)])
def test_only_the_average_and_rotation(bench: Bench, era: str, script: str) -> None:
    rotating = [*EMA, "--save_last_n_steps=1"]
    beside, only = bench.run(era, script, *rotating), bench.run(era, script, *rotating, "--ema_save=only")
    kept = ["dog", "dog-step00000003", "dog-step00000004"]
    assert only.models() == sorted(kept)
    assert beside.models() == sorted(kept + [name.replace("dog", "dog-ema") for name in kept])
    for name in kept:
        twin = beside.tensors(name.replace("dog", "dog-ema"))
        assert all(torch.equal(weights, twin[key]) for key, weights in only.tensors(name).items())


@pytest.mark.skipif(not hasattr(torch.Tensor, "register_post_accumulate_grad_hook"), reason="torch 2.1 has it first")
@pytest.mark.parametrize("era", ["v24", "v26"])
def test_a_control_net_in_a_fused_backward_pass(bench: Bench, era: str) -> None:
    fused = ["--optimizer_type=AdaCoor", "--learning_rate=1", "--fused_backward_pass"]
    run = bench.run(era, CONTROL_NET, *EMA, *fused)
    assert_average(steps_of(run, CONTROL_NET), steps_of(run, CONTROL_NET, "dog-ema"))


def test_pickled_control_nets_have_twins(bench: Bench) -> None:
    script = bench.tree("v26") / f"{CONTROL_NET}.py"
    pickling = script.with_name("train_controlnet.py")
    pickling.write_text(script.read_text().replace("course.last(args)", '"dog.ckpt"'))
    run = bench.run("v26", "train_controlnet", *EMA, "--save_model_as=ckpt")
    raw = [run.tensors(f"dog-step{step:08d}") for step in range(1, STEPS + 1)]
    ours = torch.load(run.out / "dog-ema.ckpt")
    for name, value in torch.load(run.out / "dog.ckpt").items():
        assert torch.equal(value, raw[-1][name])
    powers = [DECAY ** (STEPS - step) for step in range(1, STEPS + 1)]
    for name, value in ours.items():
        exact = sum(p * weights[name].double() for p, weights in zip(powers, raw, strict=True)) / sum(powers)
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=4e-7)


def test_an_inversion_resumes_bit_for_bit(bench: Bench) -> None:
    straight = bench.run("v26", TWO_ENCODERS, *EMA, "--save_state")
    state = straight.out / "dog-step00000002-state"
    resumed = bench.run("v26", TWO_ENCODERS, *EMA, f"--resume={state}", "--max_train_steps=2")
    for name, value in straight.tensors("dog-ema").items():
        assert torch.equal(value, resumed.tensors("dog-ema")[name])
