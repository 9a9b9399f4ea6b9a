"""What the compiled kernels of the optimizer and the EMA share. Their own tests, marked slow, compile for real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kohya_ext.tensors import compiled


@pytest.mark.parametrize(("elements", "rows"), [(0, 0), (63, 0), (127, 0), (128, 2), (200, 3), (4096, 64)])
def test_a_table_holds_whole_rows_in_place_and_never_a_single_one(elements: int, rows: int) -> None:
    assert compiled.rows_of(elements) == rows
    flat = torch.zeros(elements)
    compiled.table_of(flat).fill_(1.0)
    assert flat.sum() == rows * compiled.WIDTH
    assert flat[: rows * compiled.WIDTH].all()


@pytest.mark.parametrize("elements", [127, 128, 200, 4099])
def test_a_spread_table_has_the_same_elements_and_knows_their_numbers(elements: int) -> None:
    flat = torch.arange(elements)
    table = compiled.table_of(flat, spread=True)
    assert torch.equal(table.flatten().sort().values, compiled.table_of(flat).flatten())
    lanes = torch.arange(table.shape[-1])
    assert torch.equal(compiled.first_elements(table) + lanes, table)
    assert torch.equal(
        compiled.first_elements(compiled.table_of(flat)) + torch.arange(compiled.WIDTH), compiled.table_of(flat)
    )


@pytest.mark.parametrize(
    ("capability", "options", "count"),
    [("AVX512", ["pick_loop_orders"], 2), ("AVX2", ["pick_loop_orders"], 0), ("AVX512", [], 0)],
)
def test_halves_are_read_under_a_mask_with_vectors_of_512_bits(
    monkeypatch: pytest.MonkeyPatch, capability: str, options: list[str], count: int
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch._inductor, "list_options", lambda: options)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    assert compiled.masked(dtypes, torch.device("cpu")) == count
    assert not compiled.masked(dtypes, torch.device("cuda"))


def test_options_are_tried_in_order_and_each_kernel_has_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, Any]] = []

    def stand_in(function: Callable[[int], int], fullgraph: bool, options: dict[str, Any]) -> Callable[[int], int]:
        assert fullgraph
        tried.append((function.__code__.co_name, options))
        if "unknown" in options:
            raise RuntimeError(f"unknown option {options}")
        return function

    monkeypatch.setattr(torch, "compile", stand_in)
    offset = 2

    def add(number: int) -> int:
        return number + offset

    calls: list[int] = []
    kernel = compiled.compile_kernel(add, "add_7", lambda kernel: calls.append(kernel(1)), [{"unknown": 1}, {}, {}])
    assert tried == [("add_7", {"unknown": 1}), ("add_7", {})]
    assert calls == [3] and kernel(5) == 7
    assert add.__code__.co_name == "add"
    with pytest.raises(RuntimeError, match="'unknown': 3"):
        compiled.compile_kernel(add, "add_8", lambda kernel: None, [{"unknown": 2}, {"unknown": 3}])


def test_narrower_vectors_are_asked_for_first_and_any_torch_has_the_last_options() -> None:
    first, second, last = compiled.exact_options(256)
    assert first["cpp.simdlen"] == second["cpp.simdlen"] == 256
    assert last == {}
    assert not any("cpp.simdlen" in options for options in compiled.exact_options())
    assert compiled.exact_options(spread=True)[0]["pick_loop_orders"] is False


def test_a_gpu_divides_exactly_where_torch_has_an_option_for_it() -> None:
    from torch._inductor import list_options

    wanted = [name for name in list_options() if name.endswith(("division_rounding", "divison_rounding"))]
    for options in compiled.exact_options()[:2]:
        assert all(options[name] is True for name in wanted)
