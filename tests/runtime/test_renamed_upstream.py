"""The day upstream renames and moves a function: its new name at the front of one row is all that it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tests.miniatures.build import build, training_root
from tests.runtime.test_miniatures import ADACOOR, EMA, Bench, same
from tests.sabotage import site_with_package

ERA = "v26"
ROW, NEW_ROW = '("get_optimizer",)', '("create_optimizer", "get_optimizer")'


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("renamed"))
    yield made
    made.launcher.close()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Our package with one row changed, as CONTRIBUTING says."""
    folder = site_with_package(tmp_path / "site")
    hooks = folder / "kohya_ext" / "spec" / "hooks.py"
    text = hooks.read_text(encoding="utf-8")
    assert text.count(ROW) == 1
    hooks.write_text(text.replace(ROW, NEW_ROW), encoding="utf-8")
    for metadata in folder.glob("*.dist-info"):  # a changed file is no longer what RECORD says
        shutil.rmtree(metadata)
    return folder


def rename_and_move(training: Path) -> None:
    """`library.optimizer.get_optimizer` becomes `library.training.optimizers.create_optimizer`."""
    old, package = training / "library" / "optimizer.py", training / "library" / "training"
    package.mkdir()
    (package / "__init__.py").touch()
    old.rename(package / "optimizers.py")
    for path in training.rglob("*.py"):
        text = path.read_text(encoding="utf-8").replace("get_optimizer(", "create_optimizer(")
        text = text.replace("from library import optimizer as", "from library.training import optimizers as")
        path.write_text(text.replace("from library.optimizer", "from library.training.optimizers"), encoding="utf-8")


def install(root: Path, site: Path) -> dict[str, tuple[str, str]]:
    """By that very package; the hooks it finds."""
    command = [sys.executable, "-m", "kohya_ext", "install", str(root), "--no-package", "--yes", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["key"]: (row["status"], row["file"]) for row in json.loads(done.stdout)["hooks"]}


@pytest.mark.parametrize("moved", [False, True], ids=["the old release", "the new release"])
def test_adacoor_trains_after_one_row_has_changed(bench: Bench, tmp_path: Path, site: Path, moved: bool) -> None:
    root = build(ERA, tmp_path / "tree")
    if moved:
        rename_and_move(training_root(root))
    status, file = install(root, site)["optimizer"]
    assert (status, Path(file).name) == (("found", "optimizers.py") if moved else ("older", "optimizer.py"))
    run = bench.run(ERA, None, "full", *ADACOOR, *EMA, root=root, site=site)
    usual = bench.run(ERA, "hook", "full", *ADACOOR, *EMA)
    assert run.code == usual.code == 0, run.log
    assert run.models() == usual.models() and "dog-ema" in run.models()
    assert all(same(run.tensors(model), usual.tensors(model)) for model in run.models())
