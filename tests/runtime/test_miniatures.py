"""Real runs: miniatures of four eras, patched by the real installer, train with AdaCoor and EMA."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.demo.run import write_images
from kohya_ext.install import apply
from tests.miniatures.build import ERAS, build, training_root
from tests.miniatures.run import Launcher, Run

pytest.importorskip("torch")
pytest.importorskip("accelerate")

PATCH_SETS = ("hook", "inline")
KINDS = ("full", "lora")
DECAY = 0.9
STEPS = 4
ADACOOR = ["--optimizer_type", "AdaCoor", "--optimizer_args", "eps=1e-8", "--learning_rate", "1"]
EMA = ["--enable_ema", f"--ema_decay={DECAY}", "--ema_schedule", "constant"]
EVERY_STEP = ["--save_every_n_steps", "1"]

# What upstream's own runs differ in, and the hashes that a title or a date in a file name changes.
VOLATILE = {
    "modelspec.date",
    "ss_session_id",
    "ss_training_started_at",
    "ss_training_finished_at",
}


class Bench:
    """The miniatures, patched and plain, and runs on them; trees and the models they start from are made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launcher = Launcher()
        self.images = folder / "images"
        write_images(self.images / "1_shapes", per_caption=1)
        self.tree = cache(self._tree)
        self.start_model = cache(self._start_model)
        self.count = 0

    def _tree(self, era: str, patch_set: str | None) -> Path:
        root = build(era, self.folder / f"{era} {patch_set}")
        if patch_set is not None:
            apply.install(describe(root), patch_set=patch_set)
        return root

    def _start_model(self, era: str, kind: str) -> Path:
        """The weights that runs start from, as a file: a step at a rate too small to change any of them."""
        still = ["--optimizer_type", "SGD", "--learning_rate", "1e-30"]
        flags = [*self._flags(era, kind), *still, "--output_name", "start", "--max_train_steps", "1"]
        run = self.launcher.run(self._script(self.tree(era, None), kind), flags, self.folder / f"start {era} {kind}")
        assert run.code == 0, run.log
        return run.out / "start.safetensors"

    def run(self, era: str, patch_set: str | None, kind: str, *flags: str, root: Path | None = None, **how: Any) -> Run:
        """One training run of STEPS steps; later flags win over the usual ones."""
        self.count += 1
        given = "--network_weights" if kind == "lora" else "--pretrained_model_name_or_path"
        script = self._script(root or self.tree(era, patch_set), kind)
        usual = [*self._flags(era, kind), given, str(self.start_model(era, kind)), "--output_name", "dog"]
        return self.launcher.run(script, [*usual, *flags], self.folder / f"run {self.count}", **how)

    def _flags(self, era: str, kind: str) -> list[str]:
        words = "--caption_extension .txt --resolution 16 --train_batch_size 2 --max_data_loader_n_workers 0 --seed 3"
        words += f" --max_train_steps {STEPS} --save_model_as safetensors --save_precision float"
        words += " --network_module networks.lora --network_dim 2" if kind == "lora" else " --train_text_encoder"
        where = ["--train_data_dir", str(self.images), "--pretrained_model_name_or_path", "toy"]
        return [*words.split(), *where]

    @staticmethod
    def _script(root: Path, kind: str) -> Path:
        """SDXL's scripts where the era has them."""
        names = {"full": ("sdxl_train.py", "fine_tune.py"), "lora": ("sdxl_train_network.py", "train_network.py")}
        found = (training_root(root) / name for name in names[kind])
        return next(path for path in found if path.is_file())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("miniatures"))
    yield made
    made.launcher.close()


def load(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    import torch

    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def average(start: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The constant-decay average by its definition, in float64, from raw weights saved at every step."""
    shadow = {name: tensor.double() for name, tensor in start.items()}
    for weights in steps:
        shadow = {name: DECAY * shadow[name] + (1 - DECAY) * weights[name].double() for name in shadow}
    return shadow


def farthest(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The greatest difference, in units of the fp32 rounding of the tensor it is in."""
    assert a.keys() == b.keys()
    worst = 0.0
    for name in a:
        scale = max(float(b[name].double().abs().max()), 1e-6) * 2.0**-24
        worst = max(worst, float((a[name].double() - b[name].double()).abs().max()) / scale)
    return worst


def step_name(name: str, step: int) -> str:
    return f"{name}-step{step:08d}"


def assert_average_is_right(bench: Bench, run: Run, era: str, kind: str, steps: int) -> None:
    assert run.code == 0, run.log
    raw = [run.tensors(step_name("dog", step)) for step in range(1, steps + 1)]
    start = load(bench.start_model(era, kind))
    assert not same(raw[0], raw[-1]), "the run trained nothing"
    for done in range(1, steps + 1):
        expected = average(start, raw[:done])
        assert farthest(run.tensors(step_name("dog-ema", done)), expected) <= 2 * done
    assert farthest(run.tensors("dog-ema"), average(start, raw)) <= 2 * steps
    assert same(run.tensors("dog"), raw[-1])
    assert farthest(run.tensors("dog-ema"), {name: t.double() for name, t in raw[-1].items()}) > 1000


@pytest.mark.parametrize("patch_set", PATCH_SETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", ERAS)
def test_the_saved_average_is_the_float64_one(bench: Bench, era: str, kind: str, patch_set: str) -> None:
    run = bench.run(era, patch_set, kind, *ADACOOR, *EMA, *EVERY_STEP)
    assert_average_is_right(bench, run, era, kind, STEPS)
    if kind == "full" and era != "v06":
        assert run.metadata("dog").get("kohya_ext_ema_decay") is None
    assert run.metadata("dog-ema")["kohya_ext_ema_schedule"] == "constant"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", ["v06", "v26"])
def test_accumulation_averages_real_steps_only(bench: Bench, era: str, kind: str) -> None:
    accumulating = ["--gradient_accumulation_steps", "2", "--max_train_steps", "3"]
    run = bench.run(era, "hook", kind, *ADACOOR, *EMA, *EVERY_STEP, *accumulating)
    assert_average_is_right(bench, run, era, kind, 3)


def test_weights_that_change_after_the_step_are_averaged_as_they_end_up(bench: Bench) -> None:
    """`--scale_weight_norms` shrinks the network after optimizer.step()."""
    scaled = ["--scale_weight_norms", "0.0001", "--learning_rate", "100"]
    run = bench.run("v26", "hook", "lora", *ADACOOR, *EMA, *EVERY_STEP, *scaled)
    assert_average_is_right(bench, run, "v26", "lora", STEPS)
    free = bench.run("v26", "hook", "lora", *ADACOOR, "--learning_rate", "100")
    assert not same(run.tensors("dog"), free.tensors("dog")), "nothing was scaled"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", ERAS)
def test_without_our_flags_nothing_changes(bench: Bench, era: str, kind: str) -> None:
    prompts = bench.folder / "prompts.txt"
    prompts.write_text("a red circle --d 1 --s 2\n", encoding="utf-8")
    flags = [
        "--optimizer_type",
        "AdamW",
        "--learning_rate",
        "1e-3",
        "--save_every_n_steps",
        "2",
        "--sample_every_n_steps",
    ]
    flags += ["2", "--sample_prompts", str(prompts)]
    plain = bench.run(era, None, kind, *flags)
    assert plain.code == 0, plain.log
    for patch_set in PATCH_SETS:
        patched = bench.run(era, patch_set, kind, *flags)
        assert patched.code == 0, patched.log
        assert patched.models() == plain.models() == ["dog", "dog-step00000002", "dog-step00000004"]
        for name in plain.models():
            assert same(plain.tensors(name), patched.tensors(name))
            ours, theirs = patched.metadata(name), plain.metadata(name)
            assert {key for key in ours | theirs if ours.get(key) != theirs.get(key)} <= VOLATILE
        assert losses(patched) == losses(plain)


def losses(run: Run) -> list[str]:
    """The progress bar's last word on the loss."""
    return [part.split("]")[0] for part in run.log.split("avr_loss=")[1:]][-1:]


def test_the_optimizers_name_may_be_written_in_any_case(bench: Bench) -> None:
    runs = [
        bench.run("v26", "hook", "full", *ADACOOR, "--optimizer_type", name)
        for name in ("AdaCoor", "adacoor", "kohya_ext.optim.AdaCoor")
    ]
    assert [run.code for run in runs] == [0, 0, 0], runs[1].log
    assert same(runs[0].tensors("dog"), runs[1].tensors("dog"))
    assert same(runs[0].tensors("dog"), runs[2].tensors("dog"))


@pytest.mark.parametrize("era", ["v24", "v26"])
def test_fused_backward_equals_the_plain_loop(bench: Bench, era: str) -> None:
    flags = [*ADACOOR, *EMA, "--max_grad_norm", "0"]
    plain = bench.run(era, "hook", "full", *flags)
    fused = bench.run(era, "hook", "full", *flags, "--fused_backward_pass")
    assert (plain.code, fused.code) == (0, 0), fused.log
    for name in ("dog", "dog-ema"):
        assert same(plain.tensors(name), fused.tensors(name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_old_command_lines_still_run(bench: Bench, kind: str) -> None:
    old = ["--enable_ema", "--ema_decay", "0.999", "--ema_exp_beta", "15", "--ema_save_only_ema_weights"]
    run = bench.run("v22", "hook", kind, *ADACOOR, *old)
    assert run.code == 0, run.log
    assert run.models() == ["dog"]
    assert run.metadata("dog")["kohya_ext_ema_schedule"] == "exp"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", ["v06", "v26"])
def test_the_average_alone_takes_the_plain_name(bench: Bench, era: str, kind: str) -> None:
    flags = [*ADACOOR, *EMA, *EVERY_STEP]
    beside = bench.run(era, "hook", kind, *flags)
    only = bench.run(era, "hook", kind, *flags, "--ema_save", "only")
    assert only.code == 0, only.log
    assert only.models() == [name for name in beside.models() if "-ema" not in name]
    for name in only.models():
        assert same(only.tensors(name), beside.tensors(name.replace("dog", "dog-ema")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", ["v06", "v24", "v26"])
def test_old_files_go_with_their_twins(bench: Bench, era: str, kind: str) -> None:
    rotating = ["--save_last_n_steps", "1"]
    run = bench.run(era, "hook", kind, *ADACOOR, *EMA, *EVERY_STEP, *rotating)
    assert run.code == 0, run.log
    kept = [step_name("dog", 3), step_name("dog", 4), "dog"]
    assert run.models() == sorted(kept + [name.replace("dog", "dog-ema") for name in kept])


@pytest.mark.parametrize(("kind", "patch_set"), [("full", "hook"), ("lora", "inline")])
def test_samples_of_both_weights_leave_training_alone(bench: Bench, patch_set: str, kind: str) -> None:
    prompts = bench.folder / "prompts of both.txt"
    prompts.write_text("a blue square --d 1 --s 2\n", encoding="utf-8")
    sampling = ["--sample_every_n_steps", "2", "--sample_prompts", str(prompts), "--ema_sample", "both"]
    fast = [*ADACOOR, *EMA, "--learning_rate", "3000"]  # else a LoRA's first steps change no pixel
    plain = bench.run("v26", patch_set, kind, *fast)
    run = bench.run("v26", patch_set, kind, *fast, *sampling)
    assert run.code == 0, run.log
    assert same(run.tensors("dog"), plain.tensors("dog"))
    assert same(run.tensors("dog-ema"), plain.tensors("dog-ema"))
    images = {path.name.split("_0")[0] + path.suffix: path.read_bytes() for path in (run.out / "sample").glob("*.png")}
    assert len(list((run.out / "sample").glob("*.png"))) == 4
    assert len(images) == 2 and len(set(images.values())) == 2, sorted(images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", ERAS)
def test_a_resumed_run_goes_on_with_its_average(bench: Bench, era: str, kind: str, tmp_path: Path) -> None:
    """One image: upstream replays the first epoch's data after a resume, so only then are runs comparable."""
    one = tmp_path / "one" / "1_shape"
    write_images(one, per_caption=1)
    for path in sorted(one.glob("*.png"))[1:]:
        path.unlink()
    flags = [
        *ADACOOR,
        *EMA,
        "--ema_schedule",
        "debiased",
        "--train_data_dir",
        str(one.parent),
        "--train_batch_size",
        "1",
    ]
    straight = bench.run(era, "hook", kind, *flags, "--save_state", *EVERY_STEP)
    assert straight.code == 0, straight.log
    state = straight.out / f"{step_name('dog', 2)}-state"
    resumed = bench.run(era, "hook", kind, *flags, "--resume", str(state), "--max_train_steps", "2")
    assert resumed.code == 0, resumed.log
    assert same(resumed.tensors("dog"), straight.tensors("dog"))
    assert same(resumed.tensors("dog-ema"), straight.tensors("dog-ema"))


@pytest.mark.parametrize("era", ["v24", "v26"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_deepspeed_cannot_do_is_refused(bench: Bench, era: str, kind: str) -> None:
    run = bench.run(era, "hook", kind, *ADACOOR, *EMA, "--deepspeed", "--optimizer_args", "auto_lr=True")
    assert run.code not in (0, 1)
    assert "kohya_ext: " in run.log and "DeepSpeed" in run.log
    assert "Traceback" not in run.log
    assert run.models() == []


def test_schedule_free_optimizers_are_refused(bench: Bench) -> None:
    run = bench.run("v26", "hook", "full", *EMA, "--optimizer_type", "AdamWScheduleFree", "--learning_rate", "1e-3")
    assert run.code not in (0, 1)
    assert "ScheduleFree" in run.log or "schedule" in run.log.lower()
    assert "Traceback" not in run.log


@pytest.mark.parametrize("patch_set", PATCH_SETS)
def test_without_the_package_kohya_runs_and_one_line_says_so(bench: Bench, patch_set: str) -> None:
    flags = ["--optimizer_type", "AdamW", "--learning_rate", "1e-3"]
    plain = bench.run("v26", None, "full", *flags)
    run = bench.run("v26", patch_set, "full", *flags, without_package=True)
    assert run.code == 0, run.log
    assert "kohya_ext does not work in" in run.log
    assert same(run.tensors("dog"), plain.tensors("dog"))
    asked = bench.run("v26", patch_set, "full", *ADACOOR, *EMA, without_package=True)
    assert asked.code == 2, "flags nobody knows must not be ignored"


@pytest.mark.parametrize("patch_set", PATCH_SETS)
@pytest.mark.parametrize("era", ERAS)
def test_uninstall_gives_back_the_same_bytes(bench: Bench, era: str, patch_set: str, tmp_path: Path) -> None:
    before = snapshot(bench.tree(era, None))
    root = shutil.copytree(bench.tree(era, patch_set), tmp_path / "tree", symlinks=True)
    assert snapshot(root) != before
    run = bench.run(era, patch_set, "full", *ADACOOR, *EMA, root=root)
    assert run.code == 0, run.log
    apply.uninstall(describe(root))
    assert snapshot(root) == before


def snapshot(root: Path) -> dict[str, str]:
    """Every file of the tree but git's own."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(root).parts
    }


def test_flags_from_a_toml_file_count_too(bench: Bench, tmp_path: Path) -> None:
    """As kohya_ss from v24 calls the scripts: everything in a TOML file, values of whatever type."""
    toml = tmp_path / "run.toml"
    toml.write_text(
        'optimizer_type = "AdaCoor"\noptimizer_args = ["eps=1e-8"]\nlearning_rate = 1\n'
        'enable_ema = true\nema_decay = "0.9"\nema_schedule = "constant"\nsave_every_n_steps = 1\n',
        encoding="utf-8",
    )
    run = bench.run("v26", "hook", "full", "--config_file", str(toml))
    assert_average_is_right(bench, run, "v26", "full", STEPS)
