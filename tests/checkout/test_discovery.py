from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, HalfCheckoutError
from kohya_ext.checkout.discovery import AmbiguousError, FoundCheckout, search
from kohya_ext.core.errors import UNSUPPORTED, WRONG_USAGE, UnsupportedError
from tests.checkout import trees
from tests.checkout.pythons import process

Make = Callable[..., Checkout]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The top folder of a pretended machine, with an empty /proc."""
    (tmp_path / "machine" / "proc").mkdir(parents=True)
    return tmp_path / "machine"


def look(machine: Path, cwd: Path | None = None, environ: dict[str, str] | None = None) -> FoundCheckout:
    return search(None, environ or {}, proc_root=machine / "proc", cwd=cwd or machine, prefix=machine)


def test_the_argument_comes_before_everything(make: Make, machine: Path) -> None:
    here, there = make("embedded", "here"), make("bare", "there")
    found = search(str(there.root), {}, proc_root=machine / "proc", cwd=here.root, prefix=machine)
    assert found.checkout == there
    with pytest.raises(UnsupportedError):
        search(str(machine), {}, proc_root=machine / "proc", cwd=here.root, prefix=machine)


def serve(machine: Path, checkout: Checkout, pid: int = 41, script: str = "./kohya_gui.py") -> None:
    """A GUI that runs from the checkout."""
    process(machine / "proc", pid, ["python", script, "--headless"], checkout.root)


def choices(machine: Path, cwd: Path, **options: bool) -> list[tuple[Path, str]]:
    """What is refused as ambiguous."""
    with pytest.raises(AmbiguousError) as error:
        search(None, {}, proc_root=machine / "proc", cwd=cwd, prefix=machine, **options)
    assert error.value.exit_code == WRONG_USAGE
    for choice in error.value.choices:
        assert str(choice.checkout.root) in str(error.value)
    return [(choice.checkout.root, choice.how) for choice in error.value.choices]


def test_the_current_folder_and_another_guis_checkout_are_refused_with_both_names(make: Make, machine: Path) -> None:
    running, here = make("submodule", "running"), make("embedded", "here")
    process(machine / "proc", 7, ["/bin/bash", "./gui.sh"], here.root)
    serve(machine, running)
    expected = [(here.root, "the current folder"), (running.root, "the running GUI (process 41)")]
    assert choices(machine, here.root) == expected
    assert choices(machine, here.root / "presets" / "lora") == expected


def test_the_current_folder_is_meant_where_its_own_gui_runs(make: Make, machine: Path) -> None:
    running, here = make("submodule", "running"), make("submodule", "here")
    serve(machine, here)
    assert look(machine, here.root / "sd-scripts").checkout == here
    serve(machine, running, 40)
    assert look(machine, here.root).checkout == here


def test_the_second_gui_counts_as_one_that_runs(make: Make, machine: Path) -> None:
    running = make("submodule")
    serve(machine, running, script="kohya_gui_v2.py")
    assert look(machine).checkout == running


def test_two_running_guis_are_refused_with_both_names(make: Make, machine: Path) -> None:
    one, two = make("submodule", "one"), make("embedded", "two")
    for pid, checkout in ((41, one), (42, two), (43, one)):
        serve(machine, checkout, pid)
    assert [root for root, _ in choices(machine, machine)] == [one.root, two.root]


def test_a_running_gui_comes_before_the_templates_places(make: Make, templates: dict[str, Path], machine: Path) -> None:
    running = make("submodule", "running")
    trees.copy(templates["embedded"], machine / "workspace" / "kohya_ss")
    serve(machine, running)
    found = look(machine)
    assert found.checkout == running
    assert "41" in found.how


def test_half_a_checkout_of_a_running_gui_is_not_skipped(make: Make, templates: dict[str, Path], machine: Path) -> None:
    running, here = make("submodule", "running"), make("embedded", "here")
    shutil.rmtree(running.root / "sd-scripts" / "library")
    serve(machine, running)
    trees.copy(templates["embedded"], machine / "workspace" / "kohya_ss")
    with pytest.raises(HalfCheckoutError):
        look(machine)
    assert look(machine, here.root).checkout == here


def test_a_gui_in_a_container_says_nothing_of_our_folders(make: Make, machine: Path) -> None:
    here, there = make("embedded", "here"), make("embedded", "there")
    (machine / "proc" / "self").mkdir()
    (machine / "proc" / "self" / "root").symlink_to(machine)
    (machine / "container").mkdir()
    process(machine / "proc", 41, ["python", "kohya_gui.py"], there.root, root=machine / "container")
    assert look(machine, here.root).checkout == here


# ---- to take us out


def leave(machine: Path, cwd: Path, **environ: str) -> Checkout:
    return search(None, environ or {}, proc_root=machine / "proc", cwd=cwd, prefix=machine, leaving=True).checkout


def test_the_current_folders_checkout_is_the_only_one_to_leave(make: Make, machine: Path) -> None:
    running, here = make("submodule", "running"), make("embedded", "here")
    (running.root / ".kohya_ext").mkdir()
    serve(machine, running)
    assert leave(machine, here.root / "presets") == here


def test_elsewhere_only_checkouts_that_have_us_are_left(make: Make, templates: dict[str, Path], machine: Path) -> None:
    running = make("submodule", "running")
    serve(machine, running)
    assert leave(machine, machine) == running  # nowhere installed: it will say so
    installed = trees.copy(templates["embedded"], machine / "opt" / "kohya_ss")
    (installed / ".kohya_ext").mkdir()
    assert leave(machine, machine).root == installed
    (running.root / ".kohya_ext").mkdir()
    assert [root for root, _ in choices(machine, machine, leaving=True)] == [running.root, installed]


def test_a_running_gui_started_from_elsewhere(make: Make, machine: Path) -> None:
    running = make("embedded")
    process(machine / "proc", 41, ["python3.10", str(running.root / "kohya_gui.py")], machine)
    assert look(machine).checkout == running


def test_processes_that_cannot_be_read_are_passed_over(make: Make, machine: Path) -> None:
    (machine / "proc" / "12").mkdir()
    (machine / "proc" / "self").mkdir()
    here = make("embedded")
    assert look(machine, here.root).checkout == here


@pytest.mark.parametrize("below", [".", "library", "networks", "presets/finetune", "venv/lib/a/b/c/d/e/f"])
def test_the_current_folder_and_those_around_it(make: Make, machine: Path, below: str) -> None:
    here = make("embedded")
    (here.root / below).mkdir(parents=True, exist_ok=True)
    assert look(machine, here.root / below).checkout == here


def test_inside_the_submodule_the_whole_is_meant(make: Make, machine: Path) -> None:
    here = make("submodule")
    assert look(machine, here.root / "sd-scripts" / "library").checkout == here


def test_half_a_checkout_in_the_current_folder_is_not_passed_over(make: Make, machine: Path, templates) -> None:  # type: ignore[no-untyped-def]
    here = make("submodule")
    shutil.rmtree(here.root / "sd-scripts" / "library")
    trees.copy(templates["embedded"], machine / "workspace" / "kohya_ss")
    with pytest.raises(HalfCheckoutError):
        look(machine, here.root)


PLACES = [
    "workspace/kohya_ss",
    "opt/kohya_ss",
    "app",
    "opt/workspace-internal/kohya_ss",
    "kohya_ss",
    "content/kohya_ss",
]


@pytest.mark.parametrize("place", PLACES)
def test_the_places_of_the_templates(templates: dict[str, Path], machine: Path, place: str) -> None:
    trees.copy(templates["submodule"], machine / place)
    assert look(machine).checkout.root == machine / place


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("WORKSPACE", "kohya_ss"),
        ("HOME", "kohya_ss"),
        ("HOME", "StabilityMatrix/Data/Packages/kohya_ss"),
        ("APPDATA", "StabilityMatrix/Packages/kohya_ss"),
    ],
)
def test_places_that_a_variable_names(
    templates: dict[str, Path], machine: Path, tmp_path: Path, variable: str, below: str
) -> None:
    trees.copy(templates["embedded"], tmp_path / "named" / below)
    found = look(machine, environ={variable: str(tmp_path / "named")})
    assert found.checkout.root == tmp_path / "named" / below


def test_the_order_of_the_places(templates: dict[str, Path], machine: Path) -> None:
    for place in reversed(PLACES[:4]):
        trees.copy(templates["embedded"], machine / place)
        assert look(machine).checkout.root == machine / place


def test_a_decoy_is_passed_over_with_its_reason(templates: dict[str, Path], machine: Path) -> None:
    """One template keeps data folders at /workspace/kohya_ss and the checkout in /opt."""
    decoy = machine / "workspace" / "kohya_ss"
    for name in ("models", "outputs", "dataset"):
        (decoy / name).mkdir(parents=True)
    trees.copy(templates["submodule"], machine / "opt" / "kohya_ss")
    found = look(machine)
    assert found.checkout.root == machine / "opt" / "kohya_ss"
    assert [str(decoy) in reason and "not a Kohya checkout" in reason for reason in found.rejected] == [True]


def test_a_linked_place_is_found_once(templates: dict[str, Path], machine: Path) -> None:
    """A mounted workspace: /opt/kohya_ss links to where the checkout was moved."""
    real = trees.copy(templates["embedded"], machine / "mnt" / "kohya_ss")
    (machine / "opt").mkdir()
    (machine / "opt" / "kohya_ss").symlink_to(real)
    assert look(machine).checkout.root == real


def test_half_a_checkout_in_a_usual_place_is_passed_over(templates: dict[str, Path], machine: Path) -> None:
    half = trees.copy(templates["submodule"], machine / "workspace" / "kohya_ss")
    shutil.rmtree(half / "sd-scripts")
    trees.copy(templates["submodule"], machine / "opt" / "kohya_ss")
    found = look(machine)
    assert found.checkout.root == machine / "opt" / "kohya_ss"
    assert "an incomplete checkout" in found.rejected[0]


def test_nothing_found_says_where_it_looked(machine: Path) -> None:
    (machine / "app").mkdir()
    with pytest.raises(UnsupportedError, match="no Kohya checkout found") as error:
        look(machine)
    assert f"skipped: {machine / 'app'}" in str(error.value)
    assert error.value.exit_code == UNSUPPORTED


# ---- repositories that bring an sd-scripts of their own


@pytest.mark.parametrize("inside", ["sd-scripts", "sd_scripts", "backend/sd_scripts", "scripts/stable", "scripts/dev"])
def test_the_sd_scripts_that_a_repository_brings(
    templates: dict[str, Path], machine: Path, tmp_path: Path, inside: str
) -> None:
    top = tmp_path / "gym"
    scripts = trees.copy(templates["bare"], top / inside)
    assert search(str(top), {}, proc_root=machine / "proc", prefix=machine).checkout.root == scripts
    trees.git(top, "init", "-q")
    (top / "outputs" / "x").mkdir(parents=True)
    found = look(machine, top / "outputs" / "x")
    assert (found.checkout.root, str(top) in found.how) == (scripts, True)


def test_two_of_them_are_named(templates: dict[str, Path], machine: Path, tmp_path: Path) -> None:
    stable = trees.copy(templates["bare"], tmp_path / "gym" / "scripts" / "stable")
    dev = trees.copy(templates["bare"], tmp_path / "gym" / "scripts" / "dev")
    trees.git(tmp_path / "gym", "init", "-q")
    assert [root for root, _ in choices(machine, tmp_path / "gym")] == [stable, dev]
    with pytest.raises(AmbiguousError, match="scripts/stable"):
        search(str(tmp_path / "gym"), {}, proc_root=machine / "proc", prefix=machine)
    assert look(machine, dev / "library").checkout.root == dev


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        ("src/musubi_tuner/hv_train_network.py", "musubi-tuner"),
        ("hv_train_network.py", "musubi-tuner"),
        ("scripts/tabs/training/train_network.py", "kohya-sd-scripts-webui"),
    ],
)
def test_what_is_taken_for_kohya_is_called_by_its_name(
    templates: dict[str, Path], machine: Path, tmp_path: Path, evidence: str, name: str
) -> None:
    top = tmp_path / "other"
    trees.write(top, {evidence: "", "library/x.py": ""})
    with pytest.raises(UnsupportedError, match=f"not a Kohya checkout: .*{name}"):
        search(str(top), {}, proc_root=machine / "proc", prefix=machine)
    trees.copy(templates["embedded"], machine / "opt" / "kohya_ss")
    found = look(machine, top)
    assert found.checkout.root == machine / "opt" / "kohya_ss"
    assert name in found.rejected[0]


def test_an_old_kohya_ss_in_the_current_folder_is_not_skipped(
    templates: dict[str, Path], machine: Path, tmp_path: Path
) -> None:
    trees.copy(templates["embedded"], machine / "opt" / "kohya_ss")
    trees.write(tmp_path / "old", {"kohya_gui.py": ""})
    with pytest.raises(UnsupportedError, match=r"v21\.8\.0"):
        look(machine, tmp_path / "old")
