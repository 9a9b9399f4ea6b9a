"""The best low-rank approximation of a matrix, without the full SVD that nobody needs.

exact       eigenvectors of the Gram matrix on the small side, corrected by what the matrix itself couples them with.
randomized  a block Krylov space from a Gaussian start (Halko, Martinsson, Tropp 2011; Musco, Musco 2015), grown until
            what a further block could still gain no longer matters, judged by what the last ones gained.

Both end alike: an orthonormal basis Q of the row space, B = A Q, and the small eigenproblem of B'B in float64. The
error is then known without a second look: |A - A_r|^2 = |A|^2 - sum of the squared singular values.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the squared error: what the randomized method may leave undone. Half of it is the error's own share, and that is
# below float32's rounding: the result is as good as the full SVD's.
TOLERANCE = 1e-7
WIDEST = 0.36  # of the small side: a Krylov space beyond this costs as much as the exact method
WORTHWHILE = 5  # auto: the small side must be this many times the rank
SMALL = 256  # up to this width float64 throughout costs nothing
OVERSAMPLE = 16
STEEP = 1.5e-2  # singular values below this part of the first have lost their directions in a float32 Gram matrix
NEIGHBOURS = 1e-3  # eigenvalues nearer than this part of them are not told apart by the correction
CHUNK = 2048  # rows of float64 at a time
CANCELLED = 1e-4  # below this part of the energy the difference of squares is no longer to be trusted


@dataclass(frozen=True)
class LowRank:
    """A matrix of m x n to rank r, scaled so that both factors share the singular values: A ~ up @ down.

    up (m, r) and down (r, n), float32 on the matrix' device: columns and rows are orthogonal, each of norm
    sqrt(values[j]). values: (r,) float64 on the CPU, descending. energy: squared Frobenius norm of the matrix.
    residual: squared Frobenius norm of what is left over. method: exact or randomized.
    """

    up: Tensor
    down: Tensor
    values: Tensor
    energy: float
    residual: float
    method: str


def low_rank(matrix: Tensor, rank: int, method: str, name: str, tolerance: float = TOLERANCE) -> LowRank:
    """The rank-`rank` approximation of a float32 matrix (rank is capped by its sides).

    method: exact, randomized, or auto (randomized where the rank is small compared with the matrix). name: seeds the
    range finder, so that a module comes out the same in every run. Raises ValueError when the matrix is not finite.
    """
    rank = min(rank, *matrix.shape)
    energy = float(torch.linalg.vector_norm(matrix, dtype=torch.float64).square())
    if not energy < float("inf"):
        raise ValueError("not all values are finite")
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if transposed else matrix
    space = None
    if energy > 0 and (method == "randomized" or (method == "auto" and tall.shape[1] > WORTHWHILE * rank)):
        space = _krylov_space(tall, rank, energy, name, tolerance)
    used = "exact" if space is None else "randomized"
    if space is None:
        space = _Space.of(tall, _leading_eigenvectors(tall, rank))
    large, small, values = space.leading(rank)
    captured = float(values.square().sum())
    residual = energy - captured
    if residual < CANCELLED * energy:
        residual = _residual(tall, large, small)
    up, down = (small, large) if transposed else (large, small)
    return LowRank(up, down.T, values.cpu(), energy, max(0.0, residual), used)


def seed_of(name: str) -> int:
    """A seed that depends on nothing but the module's name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()[:7], "little")


@dataclass(frozen=True)
class _Space:
    """An orthonormal basis (n, w) of a part of the row space, its image A basis (m, w), and the image's Gram matrix."""

    basis: Tensor
    image: Tensor
    gram: Tensor

    @classmethod
    def of(cls, tall: Tensor, basis: Tensor) -> _Space:
        image = tall @ basis
        return cls(basis, image, transposed_product(image, image))

    def leading(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Within the space: (m, r) and (n, r), both with columns of norm sqrt(value), and the singular values."""
        squares, rotation = torch.linalg.eigh(self.gram)
        rotation, values = rotation.flip(1)[:, :rank], squares.flip(0)[:rank].clamp(min=0).sqrt()
        roots = values.sqrt()
        # a direction that is not there at all (value 0) must not become noise divided by nothing
        present = values > values[0] * 1e-12
        inverse = torch.where(present, roots, torch.ones_like(roots)).reciprocal() * present
        large = self.image @ (rotation * inverse).to(self.image.dtype)
        small = self.basis @ (rotation * (roots * present)).to(self.basis.dtype)
        return large, small, values * present


def _krylov_space(tall: Tensor, rank: int, energy: float, name: str, tolerance: float) -> _Space | None:
    """A space that captures all but `tolerance` of the squared error at `rank`; None where it would be too wide."""
    columns, block = tall.shape[1], max(OVERSAMPLE, rank // 2)
    widest = max(2 * rank + 2 * block, int(WIDEST * columns))
    if widest >= columns:
        return None
    generator = torch.Generator().manual_seed(seed_of(name))
    start = torch.randn(columns, block, generator=generator).to(tall.device)
    basis = torch.empty(columns, widest, device=tall.device)
    image = torch.empty(tall.shape[0], widest, device=tall.device)
    gram = torch.zeros(widest, widest, dtype=torch.float64, device=tall.device)
    added = _orthonormal(tall.T @ (tall @ start))
    captured: list[float] = []
    for width in range(block, widest + 1, block):
        new = slice(width - block, width)
        basis[:, new], image[:, new] = added, tall @ added
        gram[:width, new] = transposed_product(image[:, :width], image[:, new])
        gram[new, :width] = gram[:width, new].T
        if width > rank:
            captured.append(float(torch.linalg.eigvalsh(gram[:width, :width])[-rank:].sum()))
            if _settled(captured, energy, tolerance):
                return _Space(basis[:, :width], image[:, :width], gram[:width, :width])
        known = basis[:, :width]
        added = tall.T @ image[:, new]
        for _ in range(2):  # once is not enough in float32
            added = _orthonormal(added - known @ (known.T @ added))
    return None


def _settled(captured: list[float], energy: float, tolerance: float) -> bool:
    """True when what is still to come does not matter: gains fall from block to block, at least geometrically."""
    if len(captured) < 2:
        return False
    left = max(energy - captured[-1], 1e-9 * energy)
    gain = max(0.0, captured[-1] - captured[-2])
    if len(captured) == 2:
        return gain <= tolerance * left
    before = captured[-2] - captured[-3]
    decay = min(0.9, gain / before) if before > 0 else 0.5
    return gain * decay / (1 - decay) <= tolerance * left


def _leading_eigenvectors(tall: Tensor, rank: int) -> Tensor:
    """The leading right singular vectors (n, at least rank), from the Gram matrix."""
    columns = tall.shape[1]
    if columns <= SMALL:
        return _double_eigenvectors(tall, rank)
    squares, vectors = torch.linalg.eigh(tall.T @ tall)
    if float(squares[-rank]) < STEEP**2 * float(squares[-1]):
        return _double_eigenvectors(tall, rank)
    width = min(columns, rank + OVERSAMPLE)
    return _corrected(tall, vectors[:, -width:], vectors[:, :-width], squares[:-width])


def _corrected(tall: Tensor, leading: Tensor, others: Tensor, squares: Tensor) -> Tensor:
    """Eigenvectors of a rounded Gram matrix, freed to first order from what rounding has mixed in of the others.

    squares: eigenvalues of `others`. The coupling of two vectors is measured in the matrix itself.
    """
    image = tall @ leading
    values, rotation = torch.linalg.eigh(transposed_product(image, image))
    turn = rotation.to(tall.dtype)
    coupling = others.T @ (tall.T @ (image @ turn))
    own = values.to(tall.dtype).clamp(min=torch.finfo(tall.dtype).tiny)
    coupling /= torch.maximum(own - squares[:, None], NEIGHBOURS * own)
    return _orthonormal(leading @ turn + others @ coupling)


def _double_eigenvectors(tall: Tensor, rank: int) -> Tensor:
    gram = transposed_product(tall, tall)
    return torch.linalg.eigh(gram)[1][:, -rank:].to(tall.dtype)


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a'b in float64, in slices of rows."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    for left, right in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        total.addmm_(left.double().T, right.double())
    return total


def _orthonormal(columns: Tensor) -> Tensor:
    """A float32 basis of the columns' space: Cholesky-QR twice in float64, QR where they are too dependent for it."""
    double = columns.double()
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(double.T @ double)
        if int(failed):
            double = torch.linalg.qr(double)[0]
            break
        double = torch.linalg.solve_triangular(factor.T, double, upper=True, left=False)
        diagonal = factor.diagonal()
        if float(diagonal.min()) > 1e-3 * float(diagonal.max()):
            break
    return double.float()


def _residual(tall: Tensor, large: Tensor, small: Tensor) -> float:
    """The squared error, element by element."""
    total = 0.0
    for rows, factor in zip(tall.split(CHUNK), large.split(CHUNK), strict=True):
        total += float(torch.linalg.vector_norm(rows - factor @ small.T, dtype=torch.float64).square())
    return total


def low_rank_product(up: Tensor, down: Tensor, limit: int) -> LowRank:
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
