"""The real sdxl_train.py with a broken kohya_ext: plain AdamW ends as if unpatched, a run with our flags stops."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from tests.sabotage import SABOTAGES, site_with_package
from tests.upstream import rig
from tests.upstream.test_every_release import kohya_ext

pytestmark = pytest.mark.upstream

COMMON = ("--max_train_steps=2", "--mixed_precision=no", "--save_precision=float", "--save_every_n_steps=1")
PLAIN = (*COMMON, "--optimizer_type=AdamW", "--learning_rate=1e-4")
ADACOOR = (*COMMON, "--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8", "--learning_rate=1")
EMA = ("--enable_ema", "--ema_decay=0.9")
FILES = ("", "-step00000001")

# Runs a script as Python would, and removes a folder before the second optimizer step.
VANISHING = """
    import pathlib, runpy, shutil, sys
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    folder, steps = {folder!r}, []

    def count(*_):
        steps.append(1)
        if len(steps) == 2:
            shutil.rmtree(folder)

    register_optimizer_step_pre_hook(count)
    del sys.argv[0]
    sys.path[0] = str(pathlib.Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Bench:
    """One real tree, patched and not, and the unpatched run that others are compared with."""

    def __init__(self, tree: str, folder: Path) -> None:
        rig.require_rig(tree)
        self.name, self.environment = tree, rig.environment(tree)
        self.plain, self.patched = rig.copy_tree(tree, folder / "plain"), rig.copy_tree(tree, folder / "patched")
        done = kohya_ext("install", str(self.patched), "--no-package", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        self.unpatched = self.train("unpatched", *PLAIN, tree=self.plain)
        assert self.unpatched.returncode == 0, self.unpatched.output[-3000:]

    def train(self, name: str, *flags: str, tree: Path | None = None, **how: object) -> rig.Run:
        label = f"sabotage-{self.name}-{name.replace(' ', '-')}"
        return rig.train(tree or self.patched, self.environment, ["sdxl"], label, *flags, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(rig.TREES))
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(request.param, tmp_path_factory.mktemp("sabotage"))


def same(one: rig.Run, other: rig.Run, suffix: str) -> bool:
    a, b = one.tensors(suffix), other.tensors(suffix)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_plain_run_saves_what_an_unpatched_one_saves(bench: Bench, tmp_path: Path, name: str) -> None:
    site = site_with_package(tmp_path / "site")
    SABOTAGES[name](site)
    run = bench.train(name, *PLAIN, site=site)
    assert run.returncode == 0, run.output[-3000:]
    assert all(same(run, bench.unpatched, suffix) for suffix in FILES)


@pytest.mark.parametrize("flags", [(*PLAIN, *EMA), ADACOOR], ids=["EMA", "AdaCoor"])
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_run_with_our_flags_stops_before_training(
    bench: Bench, tmp_path: Path, name: str, flags: tuple[str, ...]
) -> None:
    site = site_with_package(tmp_path / "site")
    SABOTAGES[name](site)
    run = bench.train(name, *flags, site=site)
    assert run.returncode == 2, run.output[-3000:]
    assert not list(run.folder.glob("*.safetensors"))
    assert "avr_loss" not in run.output
    assert "kohya_ext" in run.output


@pytest.mark.parametrize("flags", [PLAIN, (*ADACOOR, *EMA)], ids=["AdamW", "AdaCoor and EMA"])
def test_a_package_removed_in_mid_run_changes_nothing(bench: Bench, tmp_path: Path, flags: tuple[str, ...]) -> None:
    site = site_with_package(tmp_path / "site")
    launcher = tmp_path / "vanishing.py"
    launcher.write_text(textwrap.dedent(VANISHING).format(folder=str(site)))
    whole = bench.train("whole", *flags)
    run = bench.train("vanished", *flags, site=site, launch=str(launcher))
    assert run.returncode == whole.returncode == 0, run.output[-3000:]
    assert not site.exists()
    suffixes = [*FILES, "-ema"] if EMA[0] in flags else FILES
    assert all(same(run, whole, suffix) for suffix in suffixes)


@pytest.mark.parametrize("name", ["package removed", "syntax error in wrapping", "skew at the save"])
@pytest.mark.parametrize("asking", ['optimizer_type = "AdaCoor"', "enable_ema = true"])
def test_a_toml_that_asks_for_us_stops_a_run_too(bench: Bench, tmp_path: Path, name: str, asking: str) -> None:
    """The GUI hands over one since v24; upstream ignores what it does not know in it."""
    site = site_with_package(tmp_path / "site")
    SABOTAGES[name](site)
    config = tmp_path / "config.toml"
    config.write_text(f"[training]\nlearning_rate = 1e-4\n{asking}\n", encoding="utf-8")
    run = bench.train(f"toml {name}", *COMMON, f"--config_file={config}", site=site)
    assert run.returncode == 2, run.output[-3000:]
    assert not list(run.folder.glob("*.safetensors"))
    assert "kohya_ext" in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize("save", ["beside", "only"])
def test_a_disk_that_is_full_when_the_ema_is_saved(bench: Bench, save: str) -> None:
    launcher = Path(rig.__file__).with_name("rig_launch.py")
    flags = (*PLAIN, *EMA, f"--ema_save={save}")
    run = bench.train(f"full disk {save}", *flags, launch=f"{launcher} full_disk")
    assert run.returncode == 0, run.output[-3000:]
    assert "No space left on device" in run.output
    assert sorted(path.suffix for path in run.folder.glob("*")) == [".safetensors"] * 3
    assert all(same(run, bench.unpatched, suffix) for suffix in FILES)
    assert run.output.rpartition("model saved")[2].count("could not be saved") == 3  # each failure once more
