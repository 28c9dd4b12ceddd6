"""TIES: trim every task vector, elect a sign for every entry, merge what agrees with it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.numerics.selection import OrderStatistic, Scan, largest, share_of, slices
from taskmerge.numerics.signs import agreeing, balance, elect, split, split_and_count, trimmed
from taskmerge.types import Merged, Stack, Weights

COEFFICIENTS = {"mean": 1.0, "sum": 0.3}  # by aggregate; 0.3 of the tables in the four papers
Scope = Literal["model", "tensor"]
Threshold = Literal["kth", "next"]


@dataclass(frozen=True, slots=True)
class Trim:
    """What TIES knows of a whole model: every task's threshold, and whether most entries elect plus."""

    cuts: tuple[OrderStatistic, ...]
    asked: int
    count: int
    mostly_up: bool

    @property
    def thresholds(self) -> list[float]:
        return [cut.value for cut in self.cuts]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was kept, where equal magnitudes or zeros make it differ from what was asked."""
        kept = [cut.reached if cut.value > 0 else cut.larger for cut in self.cuts]
        if all(entries == self.asked for entries in kept):
            return ()
        return (
            f"ties: {min(kept):,} to {max(kept):,} of {self.count:,} entries a task kept, {self.asked:,} asked:"
            " all that equal the threshold are kept, zeros never",
        )


def measure(scan: Scan, density: float, threshold: Threshold = "kth", weights: Weights | None = None) -> Trim:
    """The exact thresholds and the majority sign of everything that the scan passes.

    The majority, Σ sign(Σ_t w_t τ̂_t) > 0, decides only the entries whose trimmed sum cancels exactly.
    """
    counts: list[int] = []

    def rank(count: int) -> tuple[int]:
        counts.append(count)
        return (min(count, share_of(count, density) + (threshold == "next")),)

    cuts = tuple(row[0] for row in largest(scan, rank))
    count = counts[-1] if cuts else 0  # a sample may have been counted before
    asked = rank(count)[0]
    thresholds = [cut.value for cut in cuts]

    def elected(piece: Stack) -> int:
        scales = torch.ones(len(piece)) if weights is None else weights
        return balance(*split(trimmed(piece, thresholds, scales)))

    total = sum(scan(elected)) if cuts else 0
    return Trim(cuts, asked, count, total > 0)


def model_trim(
    scan: Scan, *, density: float, scope: Scope, threshold: Threshold, weights: Weights | None = None
) -> Trim | None:
    """The whole model's statistic, or None where every tensor is trimmed by itself."""
    return measure(scan, density, threshold, weights) if scope == "model" else None


def elected_sum(stack: Stack, weights: Weights, trim: Trim) -> Merged:
    """Σ w_t τ̂_t over the tasks that agree with the elected sign."""
    positive, negative = split(trimmed(stack, trim.thresholds, weights))
    return torch.where(elect(positive, negative, trim.mostly_up), positive, negative)


def elected_mean(stack: Stack, weights: Weights, trim: Trim) -> Merged:
    """The elected sum divided by the number of entries in it; 0 where there is none."""
    (positive, negative), counts = split_and_count(trimmed(stack, trim.thresholds, weights))
    up = elect(positive, negative, trim.mostly_up)
    return torch.where(up, positive, negative).div_(agreeing(counts, up).clamp_(min=1))


def elected_rows(stack: Stack, trim: Trim) -> Stack:
    """Every task's τ̂_t where it agrees with the elected sign, else 0: what `elected_sum` adds up at equal weights."""
    ones = torch.ones(len(stack), dtype=torch.float64)
    up = elect(*split(trimmed(stack, trim.thresholds, ones)), trim.mostly_up)
    kept = trimmed(stack, trim.thresholds, ones)
    return torch.stack([torch.where(up, row.clamp(min=0), row.clamp(max=0)) for row in kept])


@method(
    space="delta",
    reads=lambda options: "tensor" if options["scope"] == "tensor" else "elements",
    title="TIES: trim, elect sign, merge",
    formula="θ = θ₀ + λ Σ_{t∈A} w_t τ̂_t (/ |A|), τ̂ = τ 1[|τ| ≥ q], A = {t : sign(w_t τ̂_t) = sign(Σ_s w_s τ̂_s)}",
    paper="arXiv:2306.01708",
    statistic=model_trim,
    notes=(
        "at least seven public variants share the name: trim per model or tensor, mean or sum, three zero-sum rules",
        "the papers' tables used `--aggregate sum` with 0.3 and the authors' threshold (`--threshold next`)",
        "the authors searched the coefficient on validation data (0.8 to 2.5, aggregate mean)",
        "mergekit trims per tensor and divides by the agreeing weights; peft divides by their count",
    ),
    laws=Laws(equal_experts={"density": 1.0}, zero_task={"aggregate": "sum"}),
    work=Work(sweeps=40, passes=lambda options: 2 if options["scope"] == "model" else 0),
)
def ties(
    stack: Stack,
    weights: Weights,
    statistic: Trim | None = None,
    *,
    density: Annotated[float, Option("share of entries kept, the largest by magnitude", low=1e-6, high=1)] = 0.2,
    scope: Annotated[Scope, Option("what the share is taken of, and the majority sign")] = "model",
    aggregate: Annotated[Literal["mean", "sum"], Option("how entries that agree are combined")] = "mean",
    coefficient: Annotated[
        float | None,
        Option(
            "scales the result",
            auto="1.0 for mean, 0.3 for sum",
            usual=lambda options, tasks: COEFFICIENTS[str(options["aggregate"])],
        ),
    ] = None,
    threshold: Annotated[
        Threshold, Option("the k-th largest magnitude, or the next one as in the authors' code (one entry more)")
    ] = "kth",
) -> Merged:
    """Trimmed task vectors, merged where they agree in sign.

    λ Σ_{t∈A} w_t τ̂_t / |A|, or the sum alone (Yadav et al., algorithm 1). Scope: the whole model (thresholds from
    the first pass), or each tensor. Ties: all entries that equal the threshold are kept, zeros never. Zero sums elect
    the majority of the elected signs in scope, negative if that is even, as the authors' code. Weights multiply the
    trimmed task vectors before the election. Divisor of the mean: the number of agreeing non-zero entries.
    """
    trim = statistic or measure(slices(stack), density, threshold, weights)
    scale = COEFFICIENTS[aggregate] if coefficient is None else coefficient
    if not stack[0].numel():
        return torch.zeros_like(stack[0])
    return (elected_mean if aggregate == "mean" else elected_sum)(stack, weights, trim).mul_(scale)
