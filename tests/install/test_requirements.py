from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.environment import MODULES, Environment
from kohya_ext.core.shell import command
from kohya_ext.install import package, requirements
from kohya_ext.install.requirements import Check, check, numbers, pip_command, worst
from tests.systems import HAS_GIT

Make = Callable[..., Checkout]
PACKAGES = {name: "1.0" for name in MODULES if name != "kohya_ext"} | {"torch": "2.1.2+cu118", "gradio": "4.43.0"}


def environment(packages: Mapping[str, str] = PACKAGES, **changes: object) -> Environment:
    """Kohya's environment as `inspect` would describe it."""
    found = Environment(
        python=Path(sys.executable),
        prefix=Path(sys.prefix),
        version="3.11.7",
        kind="venv",
        has_pip=True,
        has_ensurepip=True,
        uv=None,
        packages=packages,
        modules={name: name in packages for name in MODULES},
        purelib=Path("/nowhere"),
        scripts=Path("/nowhere"),
        writable=True,
        externally_managed=False,
    )
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def without(*names: str) -> dict[str, str]:
    return {name: version for name, version in PACKAGES.items() if name not in names}


def named(checks: list[Check], name: str) -> Check:
    return next(one for one in checks if one.name == name)


@pytest.fixture(autouse=True)
def package_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "state", lambda _: "same")


def test_all_is_well(make: Make) -> None:
    checks = [one for one in check(make("submodule"), environment()) if HAS_GIT or one.name != "git"]
    assert worst(checks) == "ok", [one for one in checks if one.level != "ok"]


@pytest.mark.parametrize("name", ["torch", "accelerate", "diffusers", "safetensors", "toml"])
def test_a_run_without_it_is_a_problem_with_a_cure(make: Make, name: str) -> None:
    found = named(check(make("bare"), environment(without(name))), name)
    assert found.level == "problem"
    assert found.fix


def test_missing_scipy_is_a_warning_with_the_exact_command(make: Make) -> None:
    checkout = make("embedded")
    packages = {**without("scipy"), "numpy": "1.26.4"}
    found = named(check(checkout, environment(packages)), "scipy")
    assert found.level == "warning"
    assert found.fix == f"{sys.executable} -m pip install scipy numpy==1.26.4"
    (checkout.root / "requirements.txt").write_text("torch\nscipy==1.11.4\n")
    assert "scipy==1.11.4 numpy==1.26.4" in str(named(check(checkout, environment(packages)), "scipy").fix)
    packages["numpy"] = "2.1.0"
    assert "install scipy numpy==2.1.0" in str(named(check(checkout, environment(packages)), "scipy").fix)


def test_missing_xformers_is_a_warning_where_a_preset_of_the_users_asks_for_it(make: Make) -> None:
    checkout, lacking = make("submodule"), environment(without("xformers"))
    assert named(check(checkout, lacking), "xformers").level == "ok"
    assert checkout.presets_dir is not None
    folder = checkout.presets_dir / "lora" / "user_presets"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text('{"xformers": "xformers"}')
    (folder / "other.json").write_text('{"xformers": "sdpa"}')
    found = named(check(checkout, lacking), "xformers")
    assert found.level == "warning"
    assert "mine" in found.detail and "other" not in found.detail
    assert "sdpa" in str(found.fix)


def test_the_fix_speaks_to_the_right_installer() -> None:
    uv = Path("/bin/uv")
    assert pip_command(environment({}, kind="uv", uv=uv), "x").startswith(f"{uv} pip install --python ")
    assert "--user" in pip_command(environment({}, kind="user-site"), "x")


def test_an_old_torch_is_a_problem(make: Make) -> None:
    found = named(check(make("bare"), environment({**PACKAGES, "torch": "1.12.1+cu116"})), "torch")
    assert (found.level, found.detail.split(":")[0]) == ("problem", "1.12.1+cu116")


@pytest.mark.parametrize(("state", "level"), [("absent", "problem"), ("other", "warning"), ("editable", "ok")])
def test_our_own_package(make: Make, monkeypatch: pytest.MonkeyPatch, state: str, level: str) -> None:
    monkeypatch.setattr(package, "state", lambda _: state)
    checkout = make("bare")
    found = named(check(checkout, environment()), "kohya_ext")
    assert found.level == level
    assert level == "ok" or command("install", "--python", environment().python, checkout.root) in str(found.fix)
    assert not [one for one in check(checkout, environment(), patched=False) if one.name == "kohya_ext"]


@pytest.mark.parametrize(
    ("release", "gradio", "level"),
    [
        ("v26.0.0", "6.17.3", "warning"),
        ("v25.0.1", "6.0.0", "warning"),
        ("v26.0.0", "5.34.2", "ok"),
        ("v24.1.7", "6.17.3", "ok"),
        ("v26.1.0", "6.17.3", "ok"),
    ],
)
def test_the_slider_that_gradio_6_refuses(make: Make, release: str, gradio: str, level: str) -> None:
    checkout = dataclasses.replace(make("submodule"), release=release)
    found = named(check(checkout, environment({**PACKAGES, "gradio": gradio})), "gradio")
    assert found.level == level
    assert level == "ok" or "lr_warmup = 0" in str(found.fix)


def test_sd_scripts_need_nothing_that_serves_the_gui_and_its_presets(make: Make) -> None:
    checks = check(make("bare"), environment(without("gradio", "xformers")))
    assert not {"gradio", "xformers"} & {one.name for one in checks}


def test_git_is_missed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = make("bare")
    monkeypatch.setenv("PATH", "/nowhere")
    assert named(check(checkout, environment()), "git").level == "warning"


def test_what_the_scripts_import_is_followed_into_library(make: Make) -> None:
    checkout = make("bare")
    root = checkout.training_root
    (root / "train_network.py").write_text(
        "import os\nimport sys, numpy.linalg\nfrom library import helper\nimport library.deeper as d\n"
        "from networks import lora\ntry:\n    import intel_extension\nexcept ImportError:\n    pass\n"
        "def f():\n    import lazy\n"
    )
    (root / "library" / "helper.py").write_text("import cv2\nfrom . import x\nimport fine_tune\n")
    (root / "library" / "deeper.py").write_text("from einops import rearrange\nimport helper_of_nobody\n")
    (root / "library" / "unused.py").write_text("import never_reached\n")
    assert requirements.imported_modules(checkout) == {"numpy", "cv2", "einops", "helper_of_nobody"}


def test_deep_looks_for_each_of_them(make: Make) -> None:
    checkout = make("bare")
    (checkout.root / "train_network.py").write_text("import json\nimport nobody_has_this\nimport pytest\n")
    found = named(check(checkout, environment(), deep=True), "imports")
    assert found.level == "problem"
    assert "nobody_has_this" in found.detail and "pytest" not in found.detail
    (checkout.root / "train_network.py").write_text("import json\n")
    assert named(check(checkout, environment(), deep=True), "imports").level == "ok"


def test_a_script_that_cannot_be_parsed_needs_nothing(make: Make) -> None:
    checkout = make("bare")
    (checkout.root / "train_network.py").write_text("def (\n")
    assert requirements.imported_modules(checkout) == set()


@pytest.mark.parametrize(
    ("version", "expected"),
    [("v25.2.1", (25, 2, 1)), ("2.1.2+cu118", (2, 1, 2)), ("v0.9.1-5-gabc", (0, 9, 1)), ("unknown", (0,)), ("", (0,))],
)
def test_numbers(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected
