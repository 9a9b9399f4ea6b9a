"""The second GUI of kohya_ss, a preview on a branch: its source as text, its tabs in their environment, its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.presets.check import check
from kohya_ext.presets.command import commands
from kohya_ext.presets.document import Preset, bundled
from kohya_ext.presets.flat_file import file_bytes, table_of, to_file, to_form
from kohya_ext.presets.keys import EXTRA, PRIVATE
from kohya_ext.presets.loop_faults import WARM_UPS
from kohya_ext.presets.project import Project
from kohya_ext.presets.release import FAMILIES, Release, read_release
from kohya_ext.presets.schema import Tab
from kohya_ext.presets.script_choice import script_of_preset
from kohya_ext.presets.script_config import settings_of
from kohya_ext.presets.second_page import opened, run_settings, second_table
from kohya_ext.spec.flags import FLAGS
from tests.presets.test_flat_file import same_run
from tests.presets.test_launch_command import WHERE
from tests.upstream import real_gui, trees
from tests.upstream.real_gui import BUNDLE, SECOND

pytestmark = pytest.mark.upstream

STAMP = re.compile(r"\d{8}-\d{6}")
RECORDER = Path(__file__).with_name("recorded_second_gui.py")
TABS: tuple[Tab, ...] = ("finetune", "lora", "dreambooth", "ti")
OURS = [flag.key for flag in FLAGS if flag.label]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    git = os.environ.get("KOHYA_SS_GIT")
    if not git or SECOND.revision not in trees.git(git, "branch", "--all"):
        pytest.skip(f"needs a clone of kohya_ss with {SECOND.revision}: set KOHYA_SS_GIT")
    return describe(trees.export_kohya(SECOND.revision, tmp_path_factory.mktemp("second") / "kohya_ss"))


@pytest.fixture(scope="module")
def releases(checkout: Checkout) -> dict[Tab, Release]:
    return {tab: read_release(checkout, tab, patched=True, xformers=True) for tab in TABS}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[Tab, Path]:
    folder = tmp_path_factory.mktemp("images")
    (folder / "concepts" / "2_cat").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).touch()
        (folder / "concepts" / "2_cat" / name).touch()
    return {tab: folder if tab == "finetune" else folder / "concepts" for tab in TABS}


def through_toml(preset: Preset, release: Release) -> Preset:
    content, _ = to_file(preset, release)
    read = toml.loads(file_bytes(content).decode())
    values = settings_of(read).values
    back = to_form(values, table_of(read), script_of_preset(values, release), release)
    assert back.steps == []
    return Preset(preset.name, preset.tab, back.values, preset.about)


def trains_the_same(preset: Preset, release: Release, checkout: Checkout, data: Path) -> bool:
    """A warm-up that the training refuses is 0 in a file of ours, so it is here before the comparison."""
    project = Project(data, "base/model", data.parent / "out", "mine")
    read = through_toml(preset, release)
    if any(one.startswith(WARM_UPS) for one in commands(preset, release, checkout, project, WHERE).complaints):
        preset = Preset(preset.name, preset.tab, {**preset.values, **dict.fromkeys(WARM_UPS, 0)})
    return same_run(*(commands(one, release, checkout, project, WHERE) for one in (preset, read)))


def test_the_branch_is_seen(checkout: Checkout) -> None:
    assert checkout.second_gui
    assert checkout.gui_root is not None


@pytest.mark.parametrize("preset", list(bundled()), ids=lambda preset: f"{preset.tab}-{preset.name}")
def test_our_presets_train_the_same_after_both_ways(
    preset: Preset, checkout: Checkout, releases: dict[Tab, Release], images: dict[Tab, Path]
) -> None:
    assert trains_the_same(preset, releases[preset.tab], checkout, images[preset.tab])


def some_form(release: Release) -> st.SearchStrategy[dict[str, Any]]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for key, one in release.schema.fields.items():
        if key in PRIVATE or key in FAMILIES or key in ("training_preset", EXTRA):
            continue
        if one.component == "Checkbox":
            fields[key] = st.booleans()
        elif one.component in ("Dropdown", "Radio") and one.choices:
            fields[key] = st.sampled_from(one.choices)
        elif one.component in ("Number", "Slider"):
            low, high = one.minimum or 0, one.maximum if one.maximum is not None else 100
            fields[key] = st.integers(int(low), max(int(low), int(min(high, 1000))))
    keys = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=12, unique=True)
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({key: fields[key] for key in chosen}))


@pytest.mark.parametrize("tab", ["finetune", "lora"])
def test_any_preset_trains_the_same_after_both_ways(
    tab: Tab, checkout: Checkout, releases: dict[Tab, Release], images: dict[Tab, Path]
) -> None:
    release = releases[tab]

    @settings(max_examples=10)
    @example(values={"lr_warmup_steps": 1})
    @given(values=some_form(release))
    def tried(values: Mapping[str, Any]) -> None:
        preset = Preset("any", tab, values)
        try:
            to_file(preset, release)
        except (UnsupportedError, UsageError):  # the GUI itself refuses it, or it is for no script
            assume(False)
        assert trains_the_same(preset, release, checkout, images[tab])

    tried()


@pytest.mark.parametrize(
    ("tab", "values", "unread"),
    [
        ("dreambooth", {"sdxl": True, "stop_text_encoder_training": 5, "split_mode": True}, True),
        ("dreambooth", {"flux1_checkbox": True, "learning_rate_te": 3e-5}, True),
        ("dreambooth", {"stop_text_encoder_training": 5}, False),
        ("dreambooth", {"sdxl": True, "prior_loss_weight": 0.5}, False),  # its scripts take it
        ("finetune", {"sdxl_checkbox": True, "split_mode": True, "train_blocks": "single"}, True),
        ("ti", {"sdxl": True, "stop_text_encoder_training": 5}, True),
        ("lora", {"sdxl": True, "lr_warmup": 10}, False),  # a share of the steps, as the scripts read it
    ],
    ids=["sdxl-stop", "flux-rate", "sd15-stop", "prior-loss", "finetune-flux", "ti-stop", "lora-warm-up"],
)
def test_what_the_first_gui_never_hands_on(
    tab: Tab, values: dict[str, Any], unread: bool, releases: dict[Tab, Release]
) -> None:
    found = check(Preset("p", tab, values), replace(releases[tab], gradio=5))
    families = {"sdxl", "sdxl_checkbox", "flux1_checkbox"}
    expected = set(values) - families if unread else set()
    assert {one.key for one in found if one.rule == "unread"} == expected


def test_its_leco_tab_can_start_nothing(releases: dict[Tab, Release]) -> None:
    values = {"prompts_file": "p.toml", "network_module": "networks.lora"}
    found = check(Preset("p", "finetune", values), releases["finetune"])
    assert "prompts_file" in [one.key for one in found if one.rule == "training-stops"]


def recorded(tree: Path, tab: str, *files: Path, fault: str = "", patched: bool = True) -> dict[str, Any]:
    environ = real_gui.environ_of(SECOND, tree)
    if not patched:
        environ["PYTHONPATH"] = environ["PYTHONPATH"].replace(str(BUNDLE), "")
    done = subprocess.run(
        [str(real_gui.python_of(SECOND)), str(RECORDER), str(tree), tab, fault, *map(str, files)],
        capture_output=True, text=True, timeout=400, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    real_gui.require(SECOND, browser=False)
    return real_gui.installed_copy(SECOND, tmp_path_factory.mktemp("installed") / "kohya_ss")


@pytest.mark.parametrize("tab", ["finetune", "lora"])
def test_a_training_gets_what_we_say_it_gets(tab: Tab, installed: Path) -> None:
    files = sorted((installed / "presets" / tab / "user_presets").glob("*.toml"))
    release = read_release(describe(installed), tab, patched=True)
    answer = recorded(installed, tab, *files)
    assert files
    assert set(OURS) <= set(answer["names"])
    for file in files:
        values = settings_of(toml.loads(file.read_text())).values
        page = opened(values, second_table(release, tab), script_of_preset(values, release))
        said = json.loads(json.dumps(run_settings(page)))
        trained = answer["trained"][str(file)]
        decay = {"ema_decay"} if "enable_ema" in values else set()  # set as the tab is built, not in the file's reading
        assert {key: said[key] for key in said.keys() - decay} == {key: trained[key] for key in trained.keys() - decay}


@pytest.mark.parametrize("tab", TABS)
def test_untouched_fields_of_ours_change_nothing_and_a_failing_hook_neither(
    tab: Tab, installed: Path, tmp_path: Path
) -> None:
    pristine = recorded(real_gui.plain_copy(SECOND, tmp_path / "kohya_ss"), tab, patched=False)
    patched = recorded(installed, tab)
    assert patched["saved"] == pristine["saved"]
    assert [one for one in patched["names"] if one not in OURS] == pristine["names"]
    assert recorded(installed, tab, fault="_row _offering") == pristine
    assert recorded(installed, tab, fault="_row")["names"] == pristine["names"]
    assert recorded(installed, tab, fault="_offering")["names"] == patched["names"]


@pytest.mark.parametrize(("tab", "preset"), [("finetune", "AdaCoor-48GB-EMA"), ("lora", "LoRA-AdaCoor-24GB")])
def test_the_page_prints_what_presets_command_prints(tab: Tab, preset: str, installed: Path, tmp_path: Path) -> None:
    real_gui.require(SECOND)
    from playwright.sync_api import expect, sync_playwright

    file = installed / "presets" / tab / "user_presets" / f"{preset}.toml"
    model, out = tmp_path / "base.safetensors", tmp_path / "out"
    model.touch()
    project = {
        "train_data_dir": tmp_path,
        "pretrained_model_name_or_path": model,
        "output_dir": out,
        "output_name": "mine",
    }
    server = real_gui.start(SECOND, installed, tmp_path / "log", tmp_path)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=real_gui.browser_program(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 1600})
            page.set_default_timeout(180_000)
            expect.set_options(timeout=180_000)
            page.route("**/*", lambda one: one.continue_() if server.url in one.request.url else one.abort())
            page.goto(server.url, wait_until="domcontentloaded")
            title = {"finetune": "Finetune", "lora": "LoRA"}[tab]
            page.get_by_role("tab", name=title, exact=True).click()
            root = page.locator(".v2-training-tab").filter(visible=True).first
            root.locator(".v2-config button.label-wrap").first.click()
            root.get_by_label("Config file").first.fill(str(file))
            root.get_by_role("button", name="Open", exact=True).click()
            expect(page.locator(f"#v2_{tab}_optimizer_type input")).to_have_value("AdaCoor")
            expect(page.locator(f"#v2_{tab}_architecture input")).to_have_value("sdxl")
            for key, value in project.items():
                field = page.locator(f"#v2_{tab}_{key} textarea, #v2_{tab}_{key} input").first
                field.fill(str(value))
                field.press("Tab")
            root.locator(".v2-section-kohya_ext button.label-wrap").first.click()
            enabled = page.locator(f"#v2_{tab}_enable_ema input")
            expect(enabled).to_be_checked(checked="EMA" in preset)
            root.get_by_role("button", name="Print training command").click()
            toast = page.locator(".toast-text, .toast-body").filter(has_text="--config_file").first
            toast.wait_for()
            printed = toast.inner_text()
            if folder := os.environ.get("KOHYA_GUI_IMAGES"):
                page.screenshot(path=str(Path(folder) / f"second-{preset}.png"))
            browser.close()
    finally:
        server.stop()
    words = ["--data", str(tmp_path), "--model", str(model), "--output", str(out), "--name", "mine", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "kohya_ext", "presets", "command", str(file), *words, str(installed)],
        cwd=BUNDLE, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout)
    shown = re.search(r"\buv run .*\.toml", printed, re.DOTALL)  # between the heading and the cross of the message
    assert shown is not None, printed
    said = STAMP.sub("TIME", " ".join(ours["training"])).split()
    assert STAMP.sub("TIME", shown.group()).split() == said
    (trained,) = ours["toml"].values()
    assert toml.loads(next(out.glob("*.toml")).read_text()) == trained
