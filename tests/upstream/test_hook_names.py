"""The hook names on real code: the scan of the text and the running wrapper choose the same functions."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
import torch

from kohya_ext.checkout.checkout import describe
from kohya_ext.checkout.scan import GUI_KEYS, OWN_SAMPLER_KEY, scan
from kohya_ext.runtime.guard import names_in
from kohya_ext.spec.hooks import HOOKS, SAMPLE, Definition, hooks_in
from tests.runtime.test_renamed_upstream import NEW_ROW, ROW, install
from tests.sabotage import site_with_package
from tests.upstream import rig, trees
from tests.upstream.test_every_release import cases

pytestmark = pytest.mark.upstream

FUNCTIONS = re.compile(rb"def (%s)\(" % b"|".join(name.encode() for hook in HOOKS for name in hook.functions))


def definitions(code: CodeType) -> Iterator[tuple[str, Definition]]:
    """What the functions of a compiled module would be to the running wrapper; nothing of the module is run."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            count = constant.co_argcount + constant.co_kwonlyargcount
            found = Definition(frozenset(constant.co_varnames[:count]), frozenset(names_in(constant)))
            yield constant.co_name, found


@pytest.mark.parametrize(("repository", "revision"), list(cases()))
def test_both_choose_the_same(repository: str, revision: str, tmp_path: Path) -> None:
    export = trees.export_kohya if repository == "kohya_ss" else trees.export_sd_scripts
    checkout = describe(export(revision, tmp_path / "tree"))
    library = checkout.training_root / "library"
    wrapped = set()
    for path in [*library.rglob("*.py"), *checkout.training_root.glob("*.py")]:
        data = path.read_bytes()
        if FUNCTIONS.search(data):
            module = dict(definitions(compile(data, str(path), "exec", dont_inherit=True)))
            for hook, name in hooks_in(module):
                if library in path.parents or hook is SAMPLE:
                    key = hook.key
                    wrapped.add((key, name, path.relative_to(checkout.root).as_posix()))
    rows = [row for row in scan(checkout) if row.status in ("found", "older") and row.key not in GUI_KEYS]
    scanned = {(SAMPLE.key if row.key == OWN_SAMPLER_KEY else row.key, row.name, row.file) for row in rows}
    assert wrapped == scanned


def rename_and_move(training: Path) -> None:
    """`get_optimizer` becomes `create_optimizer`, in a sub-package of the library."""
    for path in [*training.glob("*.py"), *training.glob("library/*.py")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"\bget_optimizer\(", "create_optimizer(", text), encoding="utf-8")
    (old,) = (path for path in training.glob("library/*.py") if "\ndef create_optimizer(" in path.read_text("utf-8"))
    package = training / "library" / "optimization"
    package.mkdir()
    (package / "__init__.py").touch()
    text = old.read_text(encoding="utf-8")
    others = "|".join(name for hook in HOOKS for name in hook.functions)
    copied = re.sub(rf"^def ({others})\(", r"def copied_\1(", text, flags=re.MULTILINE)
    (package / "factory.py").write_text(copied, encoding="utf-8")
    text = text.replace("\ndef create_optimizer(", "\ndef former_optimizer(")
    old.write_text(f"{text}\nfrom library.optimization.factory import create_optimizer\n", encoding="utf-8")


@pytest.mark.parametrize("tree", ["sd-scripts-0.11.1", "sd-scripts-main"])
@pytest.mark.parametrize("moved", [False, True], ids=["as it is", "renamed and moved"])
def test_adacoor_trains_the_real_tree(tree: str, moved: bool, tmp_path: Path) -> None:
    rig.require_rig(tree)
    site = site_with_package(tmp_path / "site")
    hooks = site / "kohya_ext" / "spec" / "hooks.py"
    hooks.write_text(hooks.read_text(encoding="utf-8").replace(ROW, NEW_ROW), encoding="utf-8")
    for metadata in site.glob("*.dist-info"):
        shutil.rmtree(metadata)
    root = rig.copy_tree(tree, tmp_path / "tree")
    if moved:
        rename_and_move(root)
    status, file = install(root, site)["optimizer"]
    assert status == ("found" if moved else "older")
    assert not moved or file == "library/optimization/factory.py"
    flags = ("--max_train_steps=2", "--mixed_precision=no", "--save_precision=float", "--save_every_n_steps=1")
    adacoor = ("--optimizer_type=AdaCoor", "--optimizer_args", "eps=1e-8", "--learning_rate=1", "--enable_ema")
    run = rig.train(root, rig.environment(tree), ["sdxl"], f"renamed-{tree}-{moved}", *flags, *adacoor, site=site)
    assert run.returncode == 0, run.output[-3000:]
    assert not all(torch.equal(a, b) for a, b in zip(run.tensors("-ema").values(), run.tensors().values(), strict=True))
    assert "AdaCoor" in run.output
