"""Working through large tensors a slice at a time: the leaf that `optim` and `ema` share. Needs torch and nothing else.

Both rooms do many cheap operations on every weight of a model. Done slice by slice the operands stay in the cache and
temporary memory stays small, whatever the size of the model.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

_Made = TypeVar("_Made")

# Elements a slice. On a CPU a few slices of float32 fit the third-level cache; with fewer elements the threads, which
# wait for each other after every operation on a slice, lose more than a faster cache saves (timed: 1 << 16 to 1 << 21).
# A GPU wants launches large enough to fill it, and at this size all scratch buffers stay below 64 MB.
CPU_SLICE = 1 << 19
DEVICE_SLICE = 1 << 20


def slice_size(device: torch.device) -> int:
    """How many elements to work on at once on this kind of device."""
    return CPU_SLICE if device.type == "cpu" else DEVICE_SLICE


def flat_views(*tensors: Tensor) -> list[Tensor] | None:
    """One-dimensional views of tensors of one shape, elements in the same order in each.

    The order is that of memory, so tensors in a channels-last layout have views as well, as long as all share it.

    Args:
        *tensors: at least one, of any dtypes and devices.

    Returns:
        A view of each, None where their layouts differ or have gaps.
    """
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(-1) for tensor in tensors]
    first = tensors[0]
    if any(tensor.stride() != first.stride() for tensor in tensors) or not _is_dense(first):
        return None
    return [tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset()) for tensor in tensors]


def slices(numel: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of consecutive slices of at most `size` elements."""
    for start in range(0, numel, size):
        yield start, min(size, numel - start)


def scatter(gathered: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy a flat tensor back into the flat ones that it was concatenated from."""
    parts = list(gathered.split([target.numel() for target in targets]))
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(list(targets), parts)
        return
    for target, part in zip(targets, parts, strict=True):
        target.copy_(part)


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor (torch's DTensor) that this process has; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor of torch: one tensor of which each process has a part."""
    return not (type(tensor) is Tensor or type(tensor) is torch.nn.Parameter) and hasattr(tensor, "to_local")


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no values, only a shape: under torch's FakeTensorMode, or on the device `meta`."""
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def kept(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """Keep the tensors that a function makes, by its arguments, as `functools.lru_cache` does; but no fake ones."""
    known = functools.lru_cache(maxsize=256)(make)

    @functools.wraps(make)
    def once(*args: Any) -> _Made:
        return make(*args) if is_fake(torch.empty(0)) else known(*args)

    return once


def on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on a device, without waiting for it."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


class DeviceCount:
    """A count that is kept where what is counted lies, so that no device is waited for until it is asked for.

    totals: the 0-dimensional counts, one a device.
    """

    def __init__(self) -> None:
        self.totals: dict[torch.device, Tensor] = {}

    def add(self, count: Tensor) -> None:
        """Count what a 0-dimensional integer tensor says, when it is ready."""
        total = self.totals.get(count.device)
        if total is None:
            total = self.totals[count.device] = torch.zeros((), dtype=torch.int64, device=count.device)
        total += count

    def total(self) -> int:
        """Of all devices. Waits for them."""
        return sum(int(total) for total in self.totals.values())


def repeats(tensor: Tensor) -> bool:
    """True where several elements share one place (an expanded view), or where the strides do not rule it out."""
    if not tensor.numel():
        return False
    reach = 0
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride <= reach:
            return True
        reach += stride * (length - 1)
    return False


def overlap(tensors: Iterable[Tensor]) -> bool:
    """True where any two of these tensors have memory in common, or may have: interleaved ones count as well."""
    extents = sorted(_extent(tensor) for tensor in tensors if tensor.numel() and not is_fake(tensor))
    return any(end > following for (_, end), (following, _) in itertools.pairwise(extents))


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Where the memory of a tensor with elements begins and ends."""
    start, last = tensor.data_ptr(), tensor.numel() - 1
    if not tensor.is_contiguous():
        last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _is_dense(tensor: Tensor) -> bool:
    """True where the elements fill their stretch of memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length == 1:
            continue
        if stride != expected:
            return False
        expected *= length
    return True
