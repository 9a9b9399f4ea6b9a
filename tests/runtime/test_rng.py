"""States of the generators through JSON, and what must not draw from them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from kohya_ext.runtime import randomness, rng  # noqa: E402
from kohya_ext.runtime.run import run  # noqa: E402


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.randn(()))]


def test_all_generators_continue_from_what_json_held() -> None:
    randomness.seed_all(3)
    random.gauss(0, 1)  # keeps one back for the next call, as numpy's does
    np.random.normal()
    held = json.dumps(rng.to_json(rng.of_all()))
    expected = draws()
    randomness.seed_all(4)
    rng.put_back(rng.from_json(json.loads(held)))
    assert draws() == expected


def test_devices_are_kept_where_there_are_any() -> None:
    states = rng.of_data()
    state = states["torch"]
    states |= {"cuda": [state, state], "xpu": state}
    again = rng.from_json(json.loads(json.dumps(rng.to_json(states))))
    assert torch.equal(again["cuda"][1], state) and torch.equal(again["xpu"], state)
    assert "mps" not in again


@pytest.mark.parametrize(("key", "value"), [("torch", "?"), ("python", [3]), ("numpy", None)])
def test_damaged_states_are_errors(key: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        rng.from_json({**rng.to_json(rng.of_all()), key: value})


def test_log_lines_draw_nothing() -> None:
    style = pytest.importorskip("rich.style")
    random.seed(1)
    expected = random.getstate()
    rng.spare_from_logs()
    try:
        assert style.Style(link="https://example.com").link_id
        assert random.getstate() == expected
    finally:
        run.restore()
