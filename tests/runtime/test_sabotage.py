"""Whatever is broken in us: a run that did not ask for us ends as it would without us; one that did stops at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tests.runtime.test_miniatures import ADACOOR, EMA, Bench, same
from tests.sabotage import SABOTAGES, site_with_package

PLAIN = ["--optimizer_type", "AdamW", "--learning_rate", "1e-3", "--save_every_n_steps", "2"]
ASKING = {"EMA": ["--optimizer_type", "AdamW", "--learning_rate", "1e-3", *EMA], "AdaCoor": ADACOOR}
ERA, KIND = "v26", "full"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("sabotage"))
    yield made
    made.launcher.close()


@pytest.mark.parametrize("patch_set", ["hook", "inline"])
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_run_without_our_flags_is_that_of_an_unpatched_kohya(
    bench: Bench, tmp_path: Path, name: str, patch_set: str
) -> None:
    site = site_with_package(tmp_path / "site")
    SABOTAGES[name](site)
    unpatched = bench.run(ERA, None, KIND, *PLAIN)
    run = bench.run(ERA, patch_set, KIND, *PLAIN, site=site)
    assert run.code == 0, run.log
    assert run.models() == unpatched.models() == ["dog", "dog-step00000002", "dog-step00000004"]
    assert all(same(run.tensors(model), unpatched.tensors(model)) for model in run.models())
    assert "Traceback" not in run.log


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_run_with_our_flags_stops_before_training(bench: Bench, tmp_path: Path, name: str, asking: str) -> None:
    site = site_with_package(tmp_path / "site")
    SABOTAGES[name](site)
    run = bench.run(ERA, "hook", KIND, *ASKING[asking], site=site)
    assert run.code == 2, run.log
    assert run.models() == []
    assert "kohya_ext" in run.log
    assert "avr_loss" not in run.log


@pytest.mark.parametrize("flags", [PLAIN, [*ASKING["AdaCoor"], *EMA], [*ASKING["EMA"], "--fused_backward_pass"][:-1]])
def test_a_package_that_is_removed_while_a_run_goes_on_changes_nothing_for_it(
    bench: Bench, tmp_path: Path, flags: list[str]
) -> None:
    site = site_with_package(tmp_path / "site")
    whole = bench.run(ERA, "hook", KIND, *flags)
    run = bench.run(ERA, "hook", KIND, *flags, site=site, vanishing=site)
    assert not site.exists()
    assert run.code == whole.code == 0, run.log
    assert run.models() == whole.models()
    assert all(same(run.tensors(model), whole.tensors(model)) for model in run.models())
