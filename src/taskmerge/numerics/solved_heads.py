"""Linear heads z Hᵀ + b fitted to convergence on frozen features, each pulled towards the head it starts from.

Both objectives are convex, so the result depends on no seed, batch or rate, and on the order of items or the number of
threads by rounding only. They need no label: targets are an expert's outputs on the same items. Features are as the
head sees them (normalised already where it wants that): [item, D], or [item, D, *map] for a head that stands at every
place of a map (a 1x1 convolution, `weight` [C, D, 1, 1]), where places count as items. Everything is added up in
float64, a slice of items at a time; the result has the dtype and shape of the head at the start.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from taskmerge.errors import BadNumber, Mismatch, UsageError

ROWS = 1 << 14
"""Rows (items times places) that are widened to float64 at a time."""
FLOOR = 0.1
"""Share of the features' mean variance that is added to every direction's before they are whitened: enough where
directions differ a thousandfold, and no loss where they are alike."""
REMEMBERED = 20
"""Steps from which L-BFGS infers the curvature."""

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""The value and the gradient [C, D] at heads [C, D]."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A fitted head: `weight` and `bias` like those of the start, the objective `loss` there, `start_loss` before.

    `gradient` is the norm of the objective's gradient over the features' root mean square length, for values also
    over the start's root mean square error: what a `gradient_tolerance` is compared with. `iterations` is 0 where the
    start was the solution. `pull` is the μ that it was fitted by.
    """

    weight: Tensor
    bias: Tensor | None
    loss: float
    start_loss: float
    iterations: int
    gradient: float
    pull: float


def soft_targets(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(logits / temperature) over the classes of [N, C] or [N, C, *map]."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise UsageError(f"the temperature is {temperature}, not above 0", hint="1 takes the logits as they are")
    return (logits / temperature).softmax(1)


def hard_targets(logits: Tensor) -> Tensor:
    """One at the largest logit of each item (the first of equal ones), zero at the other classes; like `logits`."""
    return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)


def fit_logits(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pull: float,
    gradient_tolerance: float = 1e-6,
    most_iterations: int = 1000,
) -> Solved:
    """argmin over H, b of mean_x CE(softmax(z Hᵀ + b), q) + μ (‖H - H⁰‖² + ‖b - b⁰‖²) / C, μ = `pull` > 0.

    Targets q [N, C, *map] are probabilities: they sum to one over the classes. Ends when `Solved.gradient` is at most
    `gradient_tolerance`, or after `most_iterations`.

    Raises `UsageError` for no items, a `pull` that isn't above 0 or targets that aren't probabilities, `Mismatch` for
    shapes that don't fit together, `BadNumber` for NaN, infinity or logits that overflow.
    """
    rows, start = _opened(features, targets, weight, bias, pull)
    _check_probabilities(targets)

    def objective(heads: Tensor) -> tuple[float, Tensor]:
        loss, gradient = rows.entropies(heads)
        moved = heads - start
        return loss + pull / len(start) * float(moved.square().sum()), gradient + 2 * pull / len(start) * moved

    gram, (start_loss, gradient) = rows.gram(), objective(start)
    heads, loss, iterations, length = start, start_loss, 0, float(gram.trace()) ** 0.5
    if not (math.isfinite(start_loss) and math.isfinite(length)):
        raise BadNumber("the head's logits overflow", hint="are features and head of the same model?")
    if float(gradient.norm()) > gradient_tolerance * length:
        gram.diagonal().add_(2 * pull + FLOOR * gram.diagonal().mean())
        heads, iterations = _descend(objective, start, gram, gradient_tolerance * length, most_iterations)
        loss, gradient = objective(heads)
    ended = float(gradient.norm()) / (length or 1.0)
    return _solved(weight, bias, heads, pull, (start_loss, loss), iterations, ended)


def fit_values(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None, *, pull: float) -> Solved:
    """argmin over H, b of mean_x ‖z Hᵀ + b - y‖² / C + μ (‖H - H⁰‖² + ‖b - b⁰‖²) / C, μ = `pull` > 0.

    Targets y are [N] for a single value, else [N, C, *map]. Ridge towards the start, in closed form through the
    eigenpairs of the Gram matrix: directions that no item has stay as they were, however small the pull.

    Raises `UsageError` for no items or a `pull` that isn't above 0, `Mismatch` for shapes that don't fit together,
    `BadNumber` for NaN, infinity or errors that overflow.
    """
    rows, start = _opened(features, targets.unsqueeze(1) if targets.dim() == 1 else targets, weight, bias, pull)
    gram, (start_loss, slope) = rows.gram(), rows.squares(start)
    size = (float(gram.trace()) * start_loss) ** 0.5
    if not math.isfinite(size):
        raise BadNumber("the head's errors overflow", hint="are features and head of the same model?")
    variances, directions = torch.linalg.eigh(gram)
    empty = variances <= len(gram) * torch.finfo(gram.dtype).eps * variances[-1]
    shrunk = (slope @ directions / (variances + pull)).masked_fill(empty, 0.0)
    moved = -shrunk @ directions.mT
    loss, slope = rows.squares(start + moved)
    loss += pull / len(start) * float(moved.square().sum())
    gradient = 2 / len(start) * float((slope + pull * moved).norm())
    return _solved(weight, bias, start + moved, pull, (start_loss, loss), int(size > 0), gradient / (size or 1.0))


class _Rows:
    """Items [N, D, *map] and their targets, passed through in float64 slices: z [rows, D], q [rows, C].

    With `ones` a feature is added that is always 1: the bias is its weight.
    """

    def __init__(self, features: Tensor, targets: Tensor, *, ones: bool) -> None:
        self._features, self._targets, self._ones = features, targets, ones
        self._places = math.prod(features.shape[2:])
        self.count = len(features) * self._places
        self._held = list(self._slices()) if self.count <= ROWS else None  # widened once, not at every pass

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._slices() if self._held is None else iter(self._held)

    def _slices(self) -> Iterator[tuple[Tensor, Tensor]]:
        at_once = max(1, ROWS // self._places)
        for features, targets in zip(
            torch.split(self._features, at_once), torch.split(self._targets, at_once), strict=True
        ):
            z = _flat(features)
            yield torch.cat([z, torch.ones_like(z[:, :1])], 1) if self._ones else z, _flat(targets)

    def gram(self) -> Tensor:
        """Σ_x z zᵀ / N, [D, D]."""
        width = self._features.shape[1] + self._ones
        total = torch.zeros(width, width, dtype=torch.float64, device=self._features.device)
        for z, _ in self:
            total += z.mT @ z
        return total / self.count

    def entropies(self, heads: Tensor) -> tuple[float, Tensor]:
        """Mean cross-entropy between softmax(z Hᵀ) and q, and its gradient [C, D]."""
        loss, gradient = 0.0, torch.zeros_like(heads)
        for z, q in self:
            q = q / q.sum(1, keepdim=True)  # a float32 softmax sums to one by 1e-7 only
            log_p = (z @ heads.mT).log_softmax(1)
            loss -= float((q * log_p).sum())
            gradient += (log_p.exp_() - q).mT @ z
        return loss / self.count, gradient / self.count

    def squares(self, heads: Tensor) -> tuple[float, Tensor]:
        """Mean of (z Hᵀ - y)² over items and outputs, and Σ_x (z Hᵀ - y) zᵀ / N, [C, D]."""
        loss, slope = 0.0, torch.zeros_like(heads)
        for z, y in self:
            errors = z @ heads.mT - y
            loss += float(errors.square().mean(1).sum())
            slope += errors.mT @ z
        return loss / self.count, slope / self.count


def _flat(maps: Tensor) -> Tensor:
    """[N, D, *map] as float64 rows [N * places, D]."""
    return maps.double() if maps.dim() == 2 else maps.flatten(2).mT.reshape(-1, maps.shape[1]).double()


def _opened(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, pull: float
) -> tuple[_Rows, Tensor]:
    """The items, and the start's weight with its bias as a last column, float64; all checked."""
    if features.numel() == 0:
        raise UsageError("no items to fit a head to")
    if not (math.isfinite(pull) and pull > 0):
        raise UsageError(f"the pull is {pull}, not above 0", hint="a small one, such as 1e-6, leaves the head free")
    start = weight.flatten(1).double()
    expected = (len(features), len(start), *features.shape[2:])
    if features.shape[1] != start.shape[1] or targets.shape != expected:
        what = f"a head {list(weight.shape)} for features {list(features.shape)} and targets {list(targets.shape)}"
        raise Mismatch(what, hint="features are [N, D, …], targets [N, C, …], the head is [C, D]")
    for name, tensor in {"features": features, "targets": targets, "weight": weight, "bias": bias}.items():
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise BadNumber(f"the {name} of a head to fit: NaN or infinity")
    joined = start if bias is None else torch.cat([start, bias.double()[:, None]], 1)
    return _Rows(features, targets, ones=bias is not None), joined


def _check_probabilities(targets: Tensor) -> None:
    """Refuses targets that aren't a probability for each class."""
    if bool((targets < 0).any()) or bool(((targets.sum(1, dtype=torch.float64) - 1).abs() > 1e-2).any()):
        hint = "make them of logits by `soft_targets` or `hard_targets`"
        raise UsageError("targets that are not probabilities", hint=hint)


def _descend(
    objective: Objective, start: Tensor, metric: Tensor, allowed: float, most_iterations: int
) -> tuple[Tensor, int]:
    """The heads at which the gradient's norm is at most `allowed`, and the iterations of L-BFGS that led there.

    In the variables U = (H - H⁰) L, L Lᵀ = `metric`, the curvature is nearly the same in all directions: plain
    variables took up to fifty times the iterations where features differ much in size.
    """
    metric_root = torch.linalg.cholesky(metric)
    back = torch.linalg.solve_triangular(metric_root, torch.eye(len(metric)).to(metric), upper=False)
    latest = math.inf

    def heads(x: NDArray[np.float64]) -> Tensor:
        moved: Tensor = torch.from_numpy(x).to(start.device).view_as(start) @ back
        return start + moved

    def value(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal latest
        loss, gradient = objective(heads(x))
        latest = float(gradient.norm())
        return loss, (gradient @ back.mT).flatten().cpu().numpy()

    def check(_: NDArray[np.float64]) -> None:
        if latest <= allowed:
            raise StopIteration

    limits = {"maxiter": most_iterations, "maxfun": 20 * most_iterations, "maxcor": REMEMBERED, "ftol": 0, "gtol": 0}
    with threadpool_limits(limits=1, user_api="blas"):  # a second pool would fight with torch's for the cores
        result = minimize(value, np.zeros(start.numel()), jac=True, method="L-BFGS-B", callback=check, options=limits)
    return heads(result.x), int(result.nit)


def _solved(
    weight: Tensor, bias: Tensor | None, heads: Tensor, pull: float, losses: tuple[float, float], iterations: int,
    gradient: float,
) -> Solved:  # fmt: skip
    """Joined heads as a weight and a bias like those given; `losses` are the start's and the solution's."""
    width = weight[0].numel()
    return Solved(
        weight=heads[:, :width].reshape(weight.shape).to(weight),
        bias=None if bias is None else heads[:, width].to(bias),
        loss=losses[1],
        start_loss=losses[0],
        iterations=iterations,
        gradient=gradient,
        pull=pull,
    )
