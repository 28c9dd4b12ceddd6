"""What the fits say together: one linear merge, one by class or by tensor, none; and which way what is left points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taskmerge.experts.tensors import TRUNCATED
from taskmerge.recovery.solve import Fit, Form
from taskmerge.types import TensorClass

Verdict = Literal["unchanged", "linear", "linear by class", "linear by tensor", "unclear", "not linear"]
Pointer = Literal["foreign", "spectral", "sparse", "elementwise", "base"]
ONE_ROUNDING = 1.05
"""Times rounding up to which what is left is one rounding at the end."""
NO_WORSE = 1.02
"""Times what least squares leave up to which a form with fewer free numbers is as good."""
LITTLE = 0.02
"""Share of the change that rounding does not explain, up to which it decides nothing: arithmetic in a coarse type."""
STILL = 0.05
"""Share of clearly changed entries that stay as in the base, from which on something was left out."""


@dataclass(frozen=True, slots=True)
class TensorFit:
    """One tensor by itself: its class, how many numbers it has, and its least squares."""

    name: str
    kind: TensorClass
    numel: int
    fit: Fit


def of_rounding(fit: Fit) -> bool:
    """Whether what is left may be rounding: at the end, and after each of T sums on the way there."""
    return fit.ratio is None or fit.ratio**2 <= 4 + len(fit.coefficients)


def linear(fit: Fit) -> bool:
    """Whether what is left is rounding and no more: once, or so little that it hides nothing."""
    return of_rounding(fit) and not fit.drowned and ((fit.ratio or 0) <= ONE_ROUNDING or fit.beyond <= LITTLE)


def verdict(
    whole: Mapping[Form, Fit], classes: Mapping[TensorClass, Fit], tensors: Sequence[TensorFit], *, changed: bool
) -> Verdict:
    """What the merged checkpoint is of the experts, by the simplest form that leaves rounding alone."""
    if not changed:
        return "unchanged"
    if any(linear(whole[form]) for form in ("least squares", "scaled")):
        return "linear"
    if any(of_rounding(whole[form]) for form in ("least squares", "scaled")):
        return "unclear"
    if all(map(of_rounding, classes.values())):
        return "linear by class"
    return "linear by tensor" if all(of_rounding(one.fit) for one in tensors) else "not linear"


def simplest(whole: Mapping[Form, Fit]) -> Form:
    """The form with the fewest free numbers that leaves no more than rounding; else least squares, which says what
    cannot be told."""
    least = whole["least squares"]
    if of_rounding(least) and (least.unknown or least.ratio is None):
        return "least squares"
    most = NO_WORSE * (least.ratio or 0) if of_rounding(least) else math.inf
    order: tuple[Form, ...] = ("soup", "sum to one", "non-negative", "least squares", "scaled")
    good = (form for form in order if of_rounding(whole[form]) and (whole[form].ratio or 0) <= most)
    return next(good, "least squares")


def pointers(
    tensors: Sequence[TensorFit], *, still: float | None, foreign: Sequence[str], based: bool
) -> list[Pointer]:
    """Which way it points that no linear merge was found, in the order of how sure that is.

    `foreign`: tensors that no expert changes and the merged checkpoint does: something else took part, or spread into
    them. `spectral`: matrices are none, all other tensors are. `sparse`: `still`, the share of entries that stay
    although some expert clearly changes them, is that of methods that leave entries out. `elementwise`: matrices and
    other tensors alike. `base`: there is none, and what is left may be its share.
    """
    matrices = [one for one in tensors if one.kind in TRUNCATED and one.fit.ratio is not None]
    others = [one for one in tensors if one.kind not in TRUNCATED and one.fit.ratio is not None]
    odd = sum(not of_rounding(one.fit) for one in matrices)
    found: list[Pointer] = ["foreign"] if foreign else []
    if others and odd and all(of_rounding(one.fit) for one in others):
        found.append("spectral")
    elif still is not None and still >= STILL:
        found.append("sparse")
    elif not foreign:
        found.append("elementwise")
    return found if based else [*found, "base"]
