"""The accumulator in its three widths: making one, converting between them, reading what others wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim import blockwise
from kohya_ext.tensors.elements import local
from kohya_ext.tensors.rounding import element_indices, random_words, stream_key


def width_of(weights: Tensor, state_bits: int) -> int:
    """The bits an element's accumulator takes: as asked for, except that float64 weights always get 64."""
    return 64 if weights.dtype == torch.float64 else state_bits


def fits(vt: Tensor, weights: Tensor, book: int = blockwise.BOOK) -> bool:
    """Whether an accumulator is one for weights of this shape; codes are of the part that this process has of them.

    book: of the codes, see `blockwise.BOOK`.
    """
    if vt.dtype != torch.uint8:
        return vt.shape == weights.shape
    part = local(weights)
    return vt.shape == (part.shape if book == blockwise.BOOK else (part.numel(),))


def is_of(vt: Tensor, state_bits: int) -> bool:
    """Whether this may be an accumulator of so many bits; one of float64 weights may be of any."""
    return vt.dtype in ({8: torch.uint8, 16: torch.bfloat16, 32: torch.float32}[state_bits], torch.float64)


def fresh(weights: Tensor, state_bits: int) -> dict[str, Tensor]:
    """The accumulator of a parameter that has not been stepped yet."""
    bits = width_of(weights, state_bits)
    if bits == 8:
        weights = local(weights)
        scales = torch.zeros(blockwise.blocks_of(weights.numel()), dtype=torch.float32, device=weights.device)
        return {"vt": torch.zeros(weights.shape, dtype=torch.uint8, device=weights.device), "scale": scales}
    dtype = {16: torch.bfloat16, 32: torch.float32, 64: torch.float64}[bits]
    return {"vt": torch.zeros_like(weights, dtype=dtype, requires_grad=False)}


def fresh_momentum(weights: Tensor, state_bits: int) -> Tensor:
    """The momentum of a parameter that has not been stepped yet: as wide as the accumulator, 16 bits at least."""
    dtype = {32: torch.float32, 64: torch.float64}.get(width_of(weights, state_bits), torch.bfloat16)
    return torch.zeros_like(weights, dtype=dtype, requires_grad=False)


def adopt(
    saved: Mapping[str, Any],
    saved_bits: int | None,
    saved_eps: float,
    weights: Tensor,
    state_bits: int,
    eps: float,
    book: int = blockwise.BOOK,
) -> tuple[dict[str, Tensor], bool]:
    """A saved accumulator in the width this parameter needs, on its device; and whether it had to be converted.

    saved_bits: None for a state of the published optimizer, which keeps eps * sum(g**2) whatever the dtype.
    saved: checked already, see `loading`. book: of its codes, see `blockwise.BOOK`.
    """
    vt: Tensor = saved["vt"]
    own = fresh(weights, state_bits)
    scaled = vt.dtype == torch.bfloat16 or saved_bits is None or (saved_bits == 16 and vt.dtype != torch.float64)
    if scaled and own["vt"].dtype == torch.bfloat16 and saved_eps == eps:
        own["vt"].copy_(vt.to(weights.device))
        return own, vt.dtype != torch.bfloat16
    if not scaled and vt.dtype == own["vt"].dtype and (vt.dtype != torch.uint8 or book != 1):
        for name, tensor in own.items():
            tensor.copy_(saved[name].reshape(tensor.shape))
        return own, False
    sums = _sums(saved, vt, saved_eps if scaled else None, book).to(weights.device)
    _store(own, sums, eps)
    return own, True


def renew(state: dict[str, Any], weights: Tensor, book: int) -> None:
    """Have a state with codes of an earlier book, if it has any, hold those of today's."""
    if "scale" not in state:
        return
    state["vt"] = state["vt"].view(local(weights).shape)
    if book == 1:
        sums = blockwise.decode(state["vt"], state["scale"], book)
        state["scale"].zero_()
        _store(state, sums, 1.0)


def _sums(saved: Mapping[str, Any], vt: Tensor, eps: float | None, book: int) -> Tensor:
    if vt.dtype == torch.uint8:
        return blockwise.decode(vt, saved["scale"], book)
    wide = vt if vt.dtype == torch.float64 else vt.to(torch.float32)
    return wide if eps is None else wide / eps


def _store(own: dict[str, Tensor], sums: Tensor, eps: float) -> None:
    vt = own["vt"]
    if vt.dtype == torch.uint8:
        words = random_words(stream_key(0, 0, 0), element_indices(0, vt.numel(), vt.device))
        codes, scales = blockwise.encode(sums.reshape(-1).to(torch.float32), own["scale"], words)
        vt.copy_(codes.view(vt.shape))
        own["scale"].copy_(scales)
    else:
        vt.copy_((sums * eps if vt.dtype == torch.bfloat16 else sums).reshape(vt.shape))
