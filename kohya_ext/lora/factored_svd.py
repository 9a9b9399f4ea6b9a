"""The singular values of a product of two thin factors, exactly, without ever forming the product.

With G = up'up = L L' the nonzero singular values of up @ down are the roots of the eigenvalues of L' (down down') L, a
matrix as small as the rank. All of it in float64; the factors may be any pair, also of dependent or zero columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kohya_ext.lora.svd import LowRank, transposed_product


def decompose(up: Tensor, down: Tensor, limit: int) -> LowRank:
    """The product of up (m, R) and down (R, n), float32, as balanced factors of the leading min(limit, R) directions.

    values: all min(m, n, R) singular values, so longer than the factors: rules that look at the whole spectrum need
    them. residual: squared norm of the directions cut off. Raises ValueError when a factor is not finite.
    """
    if not (up.isfinite().all() and down.isfinite().all()):
        raise ValueError("not all values are finite")
    inner = up.shape[1]
    root, right_gram = _root(transposed_product(up, up)), transposed_product(down.T, down.T)
    core = root.T @ right_gram @ root
    squares, vectors = torch.linalg.eigh((core + core.T) / 2)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    values = squares.sqrt()[: min(inner, up.shape[0], down.shape[1])]
    rank = min(limit, len(values))
    kept = values[:rank]
    present = kept > kept[0] * 1e-12
    inverse = torch.where(present, kept, torch.ones_like(kept)).reciprocal() * present
    # right singular vectors are down' root w / value, left ones up (down down') root w / value^2
    turned = root @ vectors[:, :rank]
    right = (turned * (inverse * kept.sqrt())).T.to(down.dtype) @ down
    back = right_gram @ turned
    new_up = up @ (back * (inverse.square() * kept.sqrt() * present)).to(up.dtype)
    energy = float(squares.sum())
    residual = max(0.0, float(values[rank:].square().sum()))
    return LowRank(new_up, right, values.cpu(), energy, residual, "exact")


def _root(gram: Tensor) -> Tensor:
    """Some R with R R' = gram, which may be singular."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not int(failed):
        return factor
    squares, vectors = torch.linalg.eigh(gram)
    return vectors * squares.clamp(min=0).sqrt()
