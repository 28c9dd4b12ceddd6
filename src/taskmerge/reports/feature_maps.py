"""Features of a few hundred items as points of a plane: principal components, and t-SNE. Deterministic, no figures."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PERPLEXITY, SHARE = 30.0, 5
"""Of t-SNE: the usual one, and at most one in so many of the items: more would see no groups."""
FEWEST = 10
"""Items below which t-SNE says nothing."""
CONSTANT = 1e-12


class Plane(NamedTuple):
    """Points [n, 2], and the share of the variance that they keep (None: not of this kind)."""

    points: Floats
    share: float | None = None


def principal(features: NDArray[np.float32]) -> Plane:
    """The first two principal components of features [n, D], in float64; each axis is turned so that its largest
    weight is positive."""
    centred = features.astype(np.float64) - features.astype(np.float64).mean(0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    count = min(2, len(values))
    turned = np.sign(right[np.arange(count), np.abs(right[:count]).argmax(1)])
    points = np.zeros((len(features), 2))
    points[:, :count] = left[:, :count] * values[:count] * np.where(turned == 0, 1.0, turned)
    whole = float((values**2).sum())
    return Plane(points, float((values[:count] ** 2).sum()) / whole if whole > CONSTANT else 0.0)


def neighbours(features: NDArray[np.float32], seed: int = 0) -> Plane | None:
    """t-SNE (van der Maaten and Hinton, 2008) of features [n, D], from their principal components, exact and on one
    thread: the same points on every run of one machine. None for fewer than ten items, or items all alike."""
    spread = features.astype(np.float64).std(0).max(initial=0.0)
    if len(features) < FEWEST or spread < CONSTANT:
        return None
    from sklearn.manifold import TSNE  # what few pages need
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(features) - 1) / SHARE)
    with threadpool_limits(1):
        tsne = TSNE(method="exact", init="pca", perplexity=perplexity, random_state=seed, n_jobs=1)
        points: Floats = np.asarray(tsne.fit_transform(features.astype(np.float64)), dtype=np.float64)
    return Plane(points)


def neighbour_share(features: NDArray[np.float32], labels: Floats) -> tuple[int, int]:
    """How many items have a nearest other one (Euclidean, all dimensions) of their own label, and of how many."""
    wide = features.astype(np.float64)
    squares = (wide**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * wide @ wide.T
    np.fill_diagonal(distances, np.inf)
    if len(wide) < 2:
        return 0, len(wide)
    return int((labels[distances.argmin(1)] == labels).sum()), len(wide)
