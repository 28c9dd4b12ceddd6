"""What random subspaces, directions and signs of the same shapes give: the level beside which a number means something.

Exact means over subspaces and directions that are drawn evenly (Haar), unless said otherwise. Pure.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

NODES = 200
"""Points of the integral in `mean_root`: its error is below 1e-6."""


def overlap(first: int, second: int, side: int) -> float:
    """E ‖UᵀW‖_F² / min(a, b) of orthonormal U [side, a], W [side, b]: a b / side of squared cosines in all."""
    return max(first, second) / side if min(first, second) else math.nan


def captured(left: int, right: int, shape: tuple[int, int]) -> float:
    """E ‖P_U A P_V‖_F² / ‖A‖_F² for random U [m, left], V [n, right]: the share of A that lies in both."""
    m, n = shape
    return left / m * right / n


def centred_cosines(norms: Tensor) -> Tensor:
    """Cosines [T, T] of centred task vectors of lengths `norms` that were orthogonal before they were centred.

    Independent task vectors of many entries are close to orthogonal, and once centred they point away from each other:
    cosine -1 / (T - 1) where all are of one length. With a_t = ‖τ_t‖², b_t = ‖τ̄_t‖² and S = Σ a_t:
    ⟨τ̄_s, τ̄_t⟩ = S / T² - (a_s + a_t) / T and b_t = a_t (1 - 2 / T) + S / T², so Σ b_t = S (1 - 1 / T). For T = 2 the
    cosine is -1 always. NaN beside a zero vector.
    """
    tasks, squares = len(norms), norms.double().square()
    if tasks == 2:
        return torch.where(norms.min() > 0, torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64), torch.nan)
    total = squares.sum() * tasks / (tasks - 1)
    own = (squares - total / tasks**2) / (1 - 2 / tasks)
    inner = total / tasks**2 - (own[:, None] + own) / tasks
    both = norms.double()[:, None] * norms.double()
    cosines = torch.where(both > 0, inner / both, torch.nan).clamp(-1, 1)
    return cosines.fill_diagonal_(1.0)


def sign_conflict(touched: Tensor, cosines: Tensor | float = 0.0) -> Tensor:
    """The share of entries of two vectors that differ in sign, where the share `touched` is non-zero in both.

    Half of them for independent signs; arccos(ρ) / π for normal entries of correlation ρ (Sheppard 1899).
    """
    return touched * torch.as_tensor(cosines, dtype=torch.float64).arccos() / math.pi


def singular_interference(spectra: Sequence[Tensor], shape: tuple[int, int]) -> float:
    """E ‖(UᵀU - I) diag(s) (VᵀV - I)‖₁ (sum of absolute entries) for random orthonormal U_t [m, k_t], V_t [n, k_t].

    An entry between the components a and b is Σ_c s_c ⟨u_a, u_c⟩ ⟨v_c, v_b⟩ over the components c of third tasks. Given
    u, it is a sum over third tasks of ‖(s_c ⟨u_a, u_c⟩)_c‖ times a coordinate of an even direction, and those products
    are coordinates of one too: normal numbers over the length of a normal vector (`mean_length`). Exact where there is
    one third task; the sum over several is taken for normal, which is within 1 or 2% at sides of 30, less beyond.
    """
    m, n = shape
    total = 0.0
    for first, second in itertools.product(range(len(spectra)), repeat=2):
        others = [s for task, s in enumerate(spectra) if task not in (first, second)]
        pairs = len(spectra[first]) * len(spectra[second])
        if pairs and others:
            total += pairs * mean_root(torch.cat(others).double().square())
    return total * math.sqrt(2 / math.pi) / (mean_length(m) * mean_length(n))


def mean_length(side: int) -> float:
    """E ‖z‖ of a standard normal vector of `side` numbers."""
    return math.sqrt(2) * math.exp(math.lgamma((side + 1) / 2) - math.lgamma(side / 2))


def mean_root(weights: Tensor) -> float:
    """E √(Σ_c w_c z_c²) of standard normal z_c, for weights >= 0.

    √W = (1 / 2√π) ∫ (1 - e^(-xW)) x^(-3/2) dx, and E e^(-xW) = Π (1 + 2 x w_c)^(-1/2); in log x by the midpoint rule.
    """
    mean = float(weights.sum())
    if mean == 0:
        return 0.0
    w = weights.double() / mean
    step = 60.0 / NODES
    logs = (torch.arange(NODES, dtype=torch.float64) + 0.5) * step - 30.0
    x = logs.exp()
    missing = -torch.expm1(-0.5 * torch.log1p(2 * x[:, None] * w).sum(1))
    below = math.exp(-15.0)  # ∫ of x^(-1/2) up to e^-30, times 1 / (2√π) times 2
    above = math.exp(-15.0)
    integral = float((missing * (-0.5 * logs).exp()).sum()) * step + 2 * below + 2 * above
    return math.sqrt(mean) * integral / (2 * math.sqrt(math.pi))
