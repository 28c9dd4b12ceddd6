"""The leading singular triplets by block Krylov iteration from a fixed start: approximate, asked for by name only."""

import numpy as np
import torch
from torch import Tensor

from taskmerge.numerics.leading import Leading, nothing, rescaled
from taskmerge.numerics.powers import magnitude

SPARE = 8  # columns beyond k
DEPTH = 3  # applications of AAᵀ: the basis is [X, G X, G² X, G³ X]


def randomized(matrix: Tensor, k: int) -> Leading:
    """About the k leading triplets of a matrix [p, q]; `residual` says how good the worst one is.

    Musco and Musco 2015 (arXiv:1504.05477): Rayleigh-Ritz on a block Krylov space. The start is a table of signs from
    a counter-based generator with a fixed key, so the result is a function of the matrix alone.
    """
    k = min(k, *matrix.shape)
    if k == 0 or magnitude(matrix) == 0:
        return nothing(matrix)
    return rescaled(matrix, lambda fitting: _krylov(fitting, k))


def _krylov(matrix: Tensor, k: int) -> Leading:
    """The Ritz triplets of a matrix with entries near 1."""
    tall = matrix.mT if matrix.shape[0] >= matrix.shape[1] else matrix  # [r, R]
    r = len(tall)
    block = _signs(r, min(k + SPARE, r)).to(matrix)
    blocks = [torch.linalg.qr(block).Q]
    while len(blocks) <= DEPTH and (len(blocks) + 1) * block.shape[1] <= r:
        blocks.append(torch.linalg.qr(tall @ (tall.mT @ blocks[-1])).Q)
    basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    u, s, vt = torch.linalg.svd(basis.mT @ tall, full_matrices=False)
    kept = min(k, int((s > torch.finfo(s.dtype).eps * s[0]).sum()))
    near, far = (basis @ u[:, :kept]).mT, s[:kept, None] * vt[:kept]
    missed = (vt[:kept] @ tall.mT - s[:kept, None] * near).norm(dim=-1) / s[:kept]
    beyond = float(s[kept]) if kept < len(s) else 0.0
    return Leading(near.contiguous(), far, s[:kept], missed, beyond, kept < k, "randomized")


def _signs(rows: int, columns: int) -> Tensor:
    """A table of +1 and -1 [rows, columns] that depends on its size alone."""
    count = rows * columns
    words = np.random.Philox(key=0).random_raw((count + 63) // 64)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[:count]
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1).reshape(rows, columns)
