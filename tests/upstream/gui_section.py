"""The section of the EMA in one tab of a real GUI, worked with a real browser like a user does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kohya_ext.spec.flags import FLAGS, SECTION
from tests.upstream import real_gui
from tests.upstream.real_gui import Era

TAB_BUTTONS = ".tab-nav button, button[role=tab]"
NAMES = {"finetune": "Finetun(e|ing)", "lora": "LoRA", "dreambooth": "Dreambooth", "ti": "Textual Inversion"}
TEXT = "Additional parameters"


class Section:
    """The section and the text of one tab, in a browser."""

    def __init__(self, page: Any, config: dict[str, Any], tab: str) -> None:
        self.page = page
        self._click_tab(NAMES[tab], first=True)
        self.components = {one["id"]: one for one in config["components"]}
        self.ids = dict(reversed([*self._labels(config["layout"], NAMES[tab], inside=False)]))
        self.reveal()

    def reveal(self) -> None:
        """Opens the inner tabs and accordions that the section is in."""
        for name in ("Parameters", "Advanced", "Advanced Configuration"):
            self._click_tab(name)
            self._open(name)
        self._open(SECTION)

    def _click_tab(self, name: str, *, first: bool = False) -> None:
        buttons = self.page.locator(TAB_BUTTONS).filter(has_text=re.compile(rf"^\s*{name}\s*$"), visible=True)
        if buttons.count():
            (buttons.first if first else buttons.last).click()
            self.page.wait_for_timeout(500)

    def _open(self, name: str) -> None:
        named = re.compile(rf"^\s*{re.escape(name)}\W*$")
        closed = self.page.locator(".label-wrap:not(.open)").filter(has_text=named, visible=True)
        if closed.count():
            closed.first.click()
            self.page.wait_for_timeout(500)

    def _labels(self, node: dict[str, Any], tab: str, *, inside: bool) -> Iterator[tuple[str, int]]:
        props = self.components.get(node["id"], {}).get("props", {})
        label = str(props.get("label") or props.get("value") or "").strip()
        inside = inside or (
            self.components.get(node["id"], {}).get("type") == "tabitem" and bool(re.fullmatch(tab, label))
        )
        if inside and label:
            yield label, node["id"]
        for child in node.get("children") or []:
            yield from self._labels(child, tab, inside=inside)

    def box(self, label: str) -> Any:
        """The element of a component. gradio 6 gives elements no ids: there the label in the visible tab tells."""
        named = self.page.locator(f"#component-{self.ids[label]}")
        if named.count():
            return named
        heading = self.page.locator("[data-testid=block-info], .label-text").filter(
            has_text=re.compile(rf"^\s*{re.escape(label)}\s*$")
        )
        return self.page.locator("div.block, fieldset.block").filter(has=heading, visible=True).last

    def field(self, label: str) -> Any:
        return self.box(label).locator("input:not([type=range]), textarea").first

    def value(self, label: str) -> Any:
        field = self.field(label)
        return field.is_checked() if field.get_attribute("type") == "checkbox" else field.input_value()

    def pick(self, label: str, option: str) -> None:
        self.field(label).click()
        options = self.page.locator("ul[role=listbox] li, ul.options li").filter(visible=True)
        options.filter(has_text=re.compile(rf"^[\s✓]*{option}\s*$")).first.dispatch_event("mousedown")

    def type(self, label: str, text: str) -> None:
        self.field(label).click()
        self.field(label).fill(text[:-3])  # v26 takes a second for each key where the machine is busy
        self.field(label).press("End")
        self.field(label).press_sequentially(text[-3:])

    def shows(self, **fields: Any) -> None:
        """Waits until the fields, the text among them, show these values."""
        labels = {flag.key: flag.label for flag in FLAGS} | {"text": TEXT}
        for _ in range(300):
            now = {key: self.value(labels[key]) for key in fields}
            if now == fields:
                return
            self.page.wait_for_timeout(200)
        assert now == fields


@contextmanager
def browsed(era: Era, tree: Path, folder: Path) -> Iterator[tuple[Any, dict[str, Any], list[str]]]:
    """The page of the running GUI, its configuration, and what was posted."""
    from playwright.sync_api import sync_playwright

    server = real_gui.start(era, tree, folder / "gui.log", programs=folder)
    posted: list[str] = []
    try:
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            browser = playwright.chromium.launch(executable_path=real_gui.browser_program(), args=flags)
            page = browser.new_page(viewport={"width": 1500, "height": 1600})
            page.set_default_timeout(120_000)
            page.on("request", lambda one: posted.append(one.post_data or "") if one.method == "POST" else None)
            page.route("**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort())
            page.goto(server.url, wait_until="domcontentloaded")
            page.locator(TAB_BUTTONS).filter(has_text="LoRA", visible=True).first.wait_for()
            page.wait_for_timeout(3000)
            yield page, page.evaluate("window.gradio_config") or page.request.get(f"{server.url}config").json(), posted
            browser.close()
    finally:
        server.stop()
