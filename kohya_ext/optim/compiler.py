"""How torch is asked to compile a step: what it leaves alone, and one loop instead of two."""

from __future__ import annotations

import functools
from typing import Any

import torch

_SUMS = (torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList)


def sums_last(graph: torch.fx.Graph) -> None:
    """Move sums, and what is made of them, behind everything else that a graph does.

    torch joins a reduction to an elementwise loop only where the loop comes first. A step writes weights and state at
    the end of its graph, so the count of skipped elements would read every gradient again, in a loop of its own.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    moved: set[torch.fx.Node] = set()
    for node in list(graph.nodes):
        if node is not output and (node.target in _SUMS or moved.intersection(node.all_input_nodes)):
            output.prepend(node)
            moved.add(node)


@functools.lru_cache(maxsize=1)
def options() -> tuple[dict[str, Any], ...]:
    """Options of `torch.compile`, in the order in which they are to be tried; the last are for any torch."""
    # keeps a GPU from joining a product and a sum into one rounding; torch has it since 2.6 and needs 2.7 for it
    exact: dict[str, Any] = {"emulate_precision_casts": True}
    return {**exact, "post_grad_custom_post_pass": _graph_pass()}, exact, {}


def _graph_pass() -> Any:
    """`sums_last` in the form in which torch still keeps compilations on disk, where it has that form."""
    try:
        from torch._inductor.custom_graph_pass import CustomGraphPass
    except ImportError:  # before torch 2.6
        return sums_last

    class SumsLast(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            sums_last(graph)

        def uuid(self) -> str:
            return "kohya_ext sums_last 2"

    return SumsLast()
