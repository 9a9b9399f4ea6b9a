"""Elementwise kernels compiled by torch, for tensors of any size: what the optimizer and the EMA need to make one.

The kernels see tables of a fixed width, so that they need not look for a loose end at every step of their loops. What
is left over is for the caller to do eagerly.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])

WIDTH = 64
# In how many places a spread table is worked on in turn: with fewer, a read waits; with 8, places a power of two apart
# compete for the same lines of the cache.
PLACES = 4

# The names that torch has had for this option.
_EXACT_DIVISION = ("eager_numerics.division_rounding", "emulate_divison_rounding")

# Keep the loops in the order of a table's dimensions, where torch would go through memory in order.
_AS_GIVEN = ("pick_loop_orders", "loop_ordering_after_fusion")

_SUMS = (torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList)


def untraced(function: _Function) -> _Function:
    """Have torch.compile leave a function alone where a user compiles what calls it, as a whole training step.

    What it made of one would not have its bits; some operations it cannot trace at all. Kernels of ours that are called
    in it are compiled all the same.
    """
    # the lazy form: `torch.compiler.disable` imports seconds' worth of modules at once. torch 2.0 has neither
    leave_alone: Callable[[_Function], _Function] | None = getattr(torch, "_disable_dynamo", None)
    return function if leave_alone is None else leave_alone(function)


def rows_of(elements: int) -> int:
    """How many rows the table of a flat tensor has; 0 instead of a single one, which would be compiled again."""
    rows = elements // WIDTH
    return rows if rows > 1 else 0


def table_of(flat: Tensor, *, spread: bool = False) -> Tensor:
    """The first elements of a flat tensor as rows of WIDTH.

    spread: as (rows, PLACES, WIDTH // PLACES) instead, so that neighbours in a row are far apart in memory.
    """
    rows = rows_of(flat.numel())
    whole = flat if flat.numel() == rows * WIDTH else flat[: rows * WIDTH]
    if spread:
        return whole.view(PLACES, rows, WIDTH // PLACES).transpose(0, 1)
    return whole.view(rows, WIDTH)


def first_elements(table: Tensor) -> Tensor:
    """The number, in the flat tensor, of the first element of each run of lanes in a table: int32, to be broadcast."""
    rows = torch.arange(len(table), dtype=torch.int32, device=table.device)
    lanes = table.shape[-1]
    if table.dim() == 2:
        return lanes * rows[:, None]
    places = torch.arange(PLACES, dtype=torch.int32, device=table.device)
    return lanes * (rows[:, None, None] + len(table) * places[:, None])


def masked(dtypes: Sequence[torch.dtype], device: torch.device) -> int:
    """How many tensors of these types torch reads and writes as halves of a vector, under a mask.

    It does so with 16 bits on a CPU that has vectors of 512. Such a read waits for a write just before it in the half
    that the mask leaves out. There are two ways out: vectors of 256 bits, and tables that are spread, where that write
    is elsewhere. 0 where torch keeps to its own order of loops, so that no table can be spread.
    """
    from torch._inductor import list_options

    wide = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return sum(dtype.itemsize == 2 for dtype in dtypes) if wide and _AS_GIVEN[0] in list_options() else 0


def any_rows(tables: Iterable[Tensor]) -> None:
    """Mark the tables of a first call as having any number of rows.

    They are to be large, or torch would generate serial loops, and no two alike, or it would take them to be so always.
    """
    for table in tables:
        torch._dynamo.mark_dynamic(table, 0)


def compile_kernel(
    function: Callable[..., Any],
    name: str,
    first_call: Callable[[Callable[..., Any]], object],
    choices: Sequence[Mapping[str, Any]] = ({},),
) -> Callable[..., Any]:
    """The function, compiled by a first call with the first of some options that works.

    Args:
        function: what to compile, without breaks in its graph.
        name: a name that no other kernel has.
        first_call: calls the kernel it is given, which is when torch compiles.
        choices: options of `torch.compile`, in the order in which they are to be tried.

    Raises:
        Exception: what the compiler raised under the last of the options; compilers raise whatever they like.
    """
    # torch caches compilations by code object and gives up after a few: each kernel gets its own
    code = function.__code__.replace(co_name=name)
    own = types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    failure: Exception | None = None
    for options in choices:
        try:
            kernel: Callable[..., Any] = torch.compile(own, fullgraph=True, options=dict(options))
            first_call(kernel)
            return kernel
        except Exception as error:  # noqa: PERF203
            failure = error
    raise failure or ValueError("no options to compile with")


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


@functools.lru_cache(maxsize=4)
def exact_options(widest: int | None = None, *, spread: bool = False) -> tuple[dict[str, Any], ...]:
    """Options for the bits of eager code and one loop, in the order of preference; the last are for any torch.

    widest: bits of a vector on a CPU that has them; None: as torch chooses. spread: for tables that are.
    """
    # keeps a GPU from joining a product and a sum into one rounding; torch has it since 2.6 and needs 2.7 for it
    exact: dict[str, Any] = {"emulate_precision_casts": True}
    # keeps it from dividing approximately
    from torch._inductor import list_options

    known = list_options()
    exact.update({name: True for name in _EXACT_DIVISION if name in known})
    if widest is not None:
        exact["cpp.simdlen"] = widest
    if spread:
        exact.update({name: False for name in _AS_GIVEN if name in known})
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
