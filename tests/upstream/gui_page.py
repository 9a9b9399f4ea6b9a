"""One tab of a real Kohya GUI, worked with a real browser like a user does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.upstream.real_gui import Server

RECORDER = Path(__file__).with_name("recorded_gui.py")
TAB_BUTTONS = ".tab-nav button, button[role=tab]"


def built_order(tree: Path, tab: str) -> dict[str, dict[str, Any]]:
    """Key -> label and order of making, from the tab's own builder run on the recording stand-in."""
    done = subprocess.run(
        [sys.executable, str(RECORDER), str(tree), tab], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


# The value of one component as it stands on the page; null where it is not on the page.
READ = """(ids) => Object.fromEntries(ids.map(([id, elem]) => {
  const box = document.getElementById(elem || `component-${id}`) || document.getElementById(`component-${id}`);
  if (!box) return [id, null];
  const radios = [...box.querySelectorAll('input[type=radio]')];
  if (radios.length) { const on = radios.find(r => r.checked); return [id, on ? {radio: on.value} : null]; }
  const check = box.querySelector('input[type=checkbox]');
  if (check) return [id, {checkbox: check.checked}];
  const number = box.querySelector('input[type=number]');
  if (number) return [id, {number: number.value}];
  const text = box.querySelector('textarea, input:not([type=range])');
  return [id, text ? {text: text.value} : null];
}))"""

# gradio 6 gives its elements no names: each gets that of the component whose label it bears, where that is certain.
NAME = """(rows) => {
  const boxes = [...document.querySelectorAll('div.block, fieldset.block')].filter(
    b => !b.id && b.offsetParent && !b.querySelector('div.block, fieldset.block'));
  const labelled = new Map();
  for (const box of boxes) {
    const label = box.querySelector('[data-testid=block-info], .label-text');
    if (label) labelled.set(label.textContent.trim(), [...(labelled.get(label.textContent.trim()) || []), box]);
  }
  for (const [label, places] of labelled) {
    const free = rows.filter(r => r[1] === label && !document.getElementById(`component-${r[0]}`));
    const visible = free.filter(r => r[2]);
    const fits = [free, visible].find(some => some.length === places.length);
    if (fits) fits.forEach((r, at) => { places[at].id = `component-${r[0]}`; });
  }
}"""
NAMES = {"finetune": "Finetun(e|ing)", "lora": "LoRA"}  # what the GUIs call their tabs
CONFIGURATION = {"save": "(Save )?💾", "load": "Load 💾|↩️"}  # what the buttons say, v22 and v24+
FORM = ("textbox", "number", "slider", "dropdown", "radio", "checkbox")


class TabPage:
    """One tab of a running GUI in a browser."""

    def __init__(self, page: Any, server: Server, tab: str = "finetune") -> None:
        self.tab = tab
        self.page = page
        self.server = server
        self.errors: list[str] = []
        self.requests: list[dict[str, Any]] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._keep)
        page.route("**/*", lambda route: self._local_only(route))
        page.goto(server.url, wait_until="domcontentloaded")
        named = re.compile(rf"^\s*{NAMES[tab]}\s*$")
        button = page.locator(TAB_BUTTONS).filter(has_text=named, visible=True).first
        button.wait_for(timeout=120_000)
        page.wait_for_timeout(3000)
        button.click()
        page.wait_for_timeout(2000)
        self.config: dict[str, Any] = (
            page.evaluate("window.gradio_config") or page.request.get(f"{server.url}config").json()
        )
        self.kinds = {one["id"]: str(one["type"]) for one in self.config["components"]}
        self.props = {one["id"]: one.get("props", {}) for one in self.config["components"]}
        self.ids = self._field_ids()
        self.rows = self._rows() if server.era.gradio >= 6 else []
        self.open_everything()

    def _keep(self, request: Any) -> None:
        if request.method == "POST" and request.post_data and '"data"' in request.post_data:
            self.requests.append(json.loads(request.post_data))

    @staticmethod
    def _local_only(route: Any) -> None:
        url = route.request.url
        route.continue_() if "127.0.0.1" in url or url.startswith("data:") else route.abort()

    def label(self, identity: int) -> str:
        return str(self.props[identity].get("label") or self.props[identity].get("value") or "")

    def _events(self, label: re.Pattern[str]) -> list[tuple[int, dict[str, Any]]]:
        """The events of components with such a label: component, event."""
        found = []
        for event in self.config["dependencies"]:
            targets = [one[0] if isinstance(one, list) else one for one in event["targets"]]
            found += [(one, event) for one in targets if one in self.props and label.search(self.label(one))]
        return found

    def _field_ids(self) -> dict[str, int]:
        """Key -> component, for every key; labels have to agree with those of the tab's own builder."""
        built = {key: one for key, one in built_order(self.server.tree, self.tab).items() if key != "training_preset"}
        made = sorted(built, key=lambda key: built[key]["order"])
        for target, event in self._events(re.compile("^Presets$")):
            wired = [one for one in event["outputs"] if one in event["inputs"] and one != target]
            for keys, ids in ((list(built), wired), (made, sorted(wired))):
                if len(keys) != len(ids):
                    continue
                found = dict(zip(keys, ids, strict=True))
                if all(one["label"] in (None, self.label(found[key])) for key, one in built.items()):
                    return {**found, "training_preset": target}
        raise AssertionError(f"no event of the Presets list fills the fields of the {self.tab} tab")

    def _rows(self) -> list[tuple[int, str, bool]]:
        """The fields of the tab in the order of the page: component, label, whether it is visible at first."""
        rows: list[tuple[int, str, bool]] = []
        around = self._above(self.config["layout"], self.ids["training_preset"]) or []
        whole = next(one for one in around if self.kinds.get(one) == "tabitem")

        def walk(node: dict[str, Any], inside: bool, visible: bool) -> None:
            identity = node["id"]
            props = self.props.get(identity, {})
            visible = visible and props.get("visible", True) is True
            inside = inside or identity == whole
            if inside and self.kinds.get(identity) in FORM:
                rows.append((identity, str(props.get("label") or "").strip(), visible))
            for child in node.get("children") or []:
                walk(child, inside, visible)

        walk(self.config["layout"], inside=False, visible=True)
        return rows

    def open_everything(self) -> None:
        """Opens every accordion that is in sight, and those inside."""
        for _ in range(40):
            closed = self.page.locator(".label-wrap:not(.open)").filter(visible=True)
            if not closed.count():
                return
            closed.first.click()
            self.page.wait_for_timeout(150)

    def read(self) -> dict[str, Any]:
        """Key -> what the page shows, for the fields that are on the page now."""
        if self.rows:
            self.page.evaluate(NAME, self.rows)
        wanted = [[identity, self.props[identity].get("elem_id")] for identity in self.ids.values()]
        raw = self.page.evaluate(READ, wanted)
        return {key: raw[str(identity)] for key, identity in self.ids.items() if raw.get(str(identity))}

    def box(self, key: str) -> Any:
        """The element of one field."""
        identity = self.ids[key]
        elem = self.props[identity].get("elem_id") or f"component-{identity}"
        found = self.page.locator(f"[id='{elem}']").filter(visible=True)
        return found.first if found.count() else self.page.locator(f"[id='component-{identity}']").first

    def reveal(self, key: str) -> None:
        """Opens the inner tabs that a field is on."""
        for identity in self._above(self.config["layout"], self.ids[key]) or []:
            if self.kinds[identity] == "tabitem":
                named = re.compile(rf"^\s*{re.escape(str(self.props[identity].get('label')))}\s*$")
                button = self.page.locator(TAB_BUTTONS).filter(has_text=named, visible=True).last
                button.click()
                self.page.wait_for_timeout(200)
        self.open_everything()
        self.read()

    def _above(self, node: dict[str, Any], identity: int) -> list[int] | None:
        """The components around one, outermost first."""
        for child in node.get("children") or []:
            inner = [] if child["id"] == identity else self._above(child, identity)
            if inner is not None:
                return [child["id"], *inner] if child["id"] != identity else []
        return None

    def fill(self, key: str, value: Any) -> None:
        """Types into a field or ticks it, like a user."""
        self.reveal(key)
        box = self.box(key)
        if isinstance(value, bool):
            box.locator("input[type=checkbox]").set_checked(value)
        elif box.locator("input[type=radio]").count():
            box.locator(f"input[type=radio][value='{value}']").check()
        else:
            number = box.locator("input[type=number]")
            target = number.first if number.count() else box.locator("textarea, input").first
            target.fill(str(value))
            target.press("Enter")
            target.press("Tab")
        self.settle()

    def choose(self, preset: str) -> None:
        """Picks a preset in the Presets list."""
        before = len(self.requests)
        self.pick("training_preset", preset)
        self.until(lambda: len(self.requests) > before, f"{preset} was not asked for")
        self.settle()

    def pick(self, key: str, option: str) -> None:
        """Picks what a list offers."""
        self.reveal(key)
        self.box(key).locator("input").first.click()
        options = self.page.locator("ul[role=listbox] li, ul.options li").filter(visible=True)
        options.first.wait_for()
        wanted = options.filter(has_text=re.compile(rf"^[\s✓]*{re.escape(option)}\s*$")).first
        wanted.scroll_into_view_if_needed()
        wanted.dispatch_event("mousedown")
        self.settle()

    def configuration(self, path: Path, button: str) -> None:
        """Names the file of a configuration, and presses the button that saves or loads it."""
        named = re.compile(rf"^\s*({CONFIGURATION[button]})\s*$")
        fields = set(self.ids.values())
        inputs = next(
            event["inputs"]
            for target, event in self._events(named)
            if len(fields & set(event["inputs"])) >= len(fields) - 1
        )
        file = next(one for one in inputs if one not in fields and self.kinds[one] in ("textbox", "dropdown"))
        self.read()
        target = self.page.locator(f"[id='component-{file}']").locator("textarea, input").first
        target.fill(str(path))
        target.press("Enter")
        target.press("Tab")
        self.settle()
        before = len(self.requests)
        self.page.get_by_role("button", name=named).filter(visible=True).first.click()
        self.until(lambda: len(self.requests) > before, f"{button} asked for nothing")
        self.settle()

    def press(self, button: str) -> None:
        before = len(self.requests)
        self.page.get_by_role("button", name=button).filter(visible=True).first.click()
        self.until(lambda: len(self.requests) > before, f"{button} asked for nothing")

    def until(self, reached: Callable[[], bool], problem: str, seconds: float = 30) -> None:
        for _ in range(int(seconds * 5)):
            if reached():
                return
            self.page.wait_for_timeout(200)
        raise AssertionError(problem)

    def settle(self) -> None:
        """Waits until nothing on the page has changed for a second."""
        last, same = self.read(), 0
        for _ in range(60):
            self.page.wait_for_timeout(250)
            now = self.read()
            same = same + 1 if now == last else 0
            last = now
            if same >= 4:
                return
        raise AssertionError("the page never comes to rest")

    def complaints(self) -> list[str]:
        """What the GUI says is wrong: its messages on the page, and errors of the page itself."""
        messages = self.page.locator(".toast-body.error, .toast-body.warning, .toast-wrap .error").all_inner_texts()
        return [*messages, *self.errors]

    def sent(self) -> dict[str, Any]:
        """Key -> value, as the browser sent them with the last event that takes the whole form."""
        for request in reversed(self.requests):
            inputs = self.config["dependencies"][request["fn_index"]]["inputs"]
            if set(self.ids.values()) - {self.ids["training_preset"]} <= set(inputs):
                values = dict(zip(inputs, request["data"], strict=True))
                return {key: values[identity] for key, identity in self.ids.items() if identity in values}
        return {}
