"""The metrics that a suite may name, and how outputs and labels become a score with its interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from taskmerge.errors import BadFile, unknown_name
from taskmerge.evaluation import estimates
from taskmerge.evaluation.estimates import Grouped, Rows
from taskmerge.evaluation.intervals import Bits, bootstrap, wilson
from taskmerge.evaluation.scores import Score
from taskmerge.specs.suite import DENSE, TaskKind

if TYPE_CHECKING:
    from torch import Tensor

Range = tuple[float, float]
SHARE: Range = (0.0, 1.0)
CORRELATION: Range = (-1.0, 1.0)
ANGLE: Range = (0.0, 180.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: of which kind of task, and how it is read.

    `grouped` is its estimate. `proportion`: a share of independent items, so its interval is Wilson's. `range`: what
    values it can take (None: any error from 0), `percent`: told in percent in tables, `exports`: its names in the files
    of CLIP_benchmark and lm-evaluation-harness. `beside` are metrics of the same outputs that are told with it.
    """

    name: str
    kind: TaskKind
    title: str
    grouped: Callable[[Rows], Grouped]
    exports: tuple[str, ...]
    lower_is_better: bool = False
    proportion: bool = False
    range: Range | None = SHARE
    percent: bool = True
    beside: tuple[str, ...] = ()


def _table(*metrics: Metric) -> Mapping[str, Metric]:
    return MappingProxyType({metric.name: metric for metric in metrics})


METRICS: Mapping[str, Metric] = _table(
    Metric(
        "accuracy", "classification", "share of right predictions", estimates.accuracy, ("acc1", "acc"),
        proportion=True, beside=("ece",),
    ),
    Metric(
        "mean_per_class", "classification", "mean recall of the classes", estimates.mean_per_class,
        ("mean_per_class_recall",), beside=("ece",),
    ),
    Metric(
        "matthews", "classification", "Matthews' correlation", estimates.matthews, ("mcc",),
        range=CORRELATION, beside=("ece",),
    ),
    Metric(
        "f1", "classification", "F1 of the second of two classes", estimates.f1, ("f1",), beside=("accuracy", "ece")
    ),
    Metric(
        "ece", "classification", "calibration error, 15 bins", estimates.calibration_error, ("ece",),
        lower_is_better=True,
    ),
    Metric("pearson", "regression", "Pearson's correlation", estimates.pearson, ("pearson",), range=CORRELATION),
    Metric(
        "spearman", "regression", "Spearman's rank correlation", estimates.spearman, ("spearmanr",), range=CORRELATION
    ),
    Metric(
        "pearson+spearman", "regression", "mean of Pearson's and Spearman's correlation", estimates.mean_correlation,
        ("pearson_spearmanr",), range=CORRELATION, beside=("pearson", "spearman"),
    ),
    Metric(
        "miou", "segmentation", "mean intersection over union of the classes", estimates.miou, ("miou",),
        beside=("pixel_accuracy",),
    ),
    Metric(
        "pixel_accuracy", "segmentation", "share of pixels that are right", estimates.pixel_accuracy, ("pixel_acc",),
        beside=("miou",),
    ),
    Metric(
        "abs_error", "depth", "mean absolute error of depth", lambda rows: estimates.pooled(rows, 0), ("abs_err",),
        lower_is_better=True, range=None, percent=False, beside=("rel_error",),
    ),
    Metric(
        "rel_error", "depth", "mean relative error of depth", lambda rows: estimates.pooled(rows, 1), ("rel_err",),
        lower_is_better=True, range=None, percent=False, beside=("abs_error",),
    ),
    Metric(
        "angle", "normals", "mean angle between normals, in degrees", lambda rows: estimates.pooled(rows, 0),
        ("angle",), lower_is_better=True, range=ANGLE, percent=False,
    ),
)  # fmt: skip


def metric_named(name: str) -> Metric:
    """The metric of that name; UsageError with the nearest one otherwise."""
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def score(metric: str, outputs: "Tensor", labels: "Tensor", *, seed: int = 0) -> tuple[Score, Bits | None]:
    """The score of N outputs, with its 95% interval, and one bool an item for a classification (else None).

    Shapes are those of `contributions`. The interval is Wilson's for a proportion, else the percentile bootstrap's of
    1000 resamples drawn with `seed`. A correlation with a constant is 0. With a single item resampling says nothing:
    the interval is then the metric's whole range (for depth errors, which have none, the value itself).

    Raises UsageError for an unknown metric, Mismatch for shapes that do not belong together, BadFile for labels outside
    the classes, not finite, or absent altogether, BadNumber for outputs that are not finite.
    """
    return score_of(metric, contributions(metric, outputs, labels), seed=seed)


def contributions(metric: str, outputs: "Tensor", labels: "Tensor") -> Rows:
    """One row of numbers an item [N, k], all that `score_of` needs: batches can be joined without keeping their maps.

    Classification: scores [N, C] and classes [N]; regression: values [N] or [N, 1] and [N]; segmentation: scores
    [N, C, H, W] and classes [N, H, W]; depth: [N, H, W] both; normals: [N, 3, H, W] both.
    """
    from taskmerge.evaluation.itemwise import CONTRIBUTIONS  # torch is not needed to read a report

    return CONTRIBUTIONS[metric_named(metric).kind](outputs, labels)


def score_of(metric: str, rows: Rows, *, seed: int = 0, alone: bool = False) -> tuple[Score, Bits | None]:
    """`score` from the contributions of all items; `alone` leaves out the metrics that are told beside it."""
    declared = metric_named(metric)
    if not len(rows) or (declared.kind in DENSE and not rows[:, -_pixels(rows, declared) :].any()):
        raise BadFile("there is nothing to score: no item has a label", hint="check the split's labels")
    value, low, high = _estimated(declared, rows, seed)
    extra: dict[str, float] = {}
    for other in () if alone else declared.beside:
        extra[other], extra[f"{other}_low"], extra[f"{other}_high"] = _estimated(METRICS[other], rows, seed)
    correct = rows[:, 0] == rows[:, 1] if declared.kind == "classification" else None
    return Score(value, len(rows), low, high, lower_is_better=declared.lower_is_better, extra=extra), correct


def _pixels(rows: Rows, metric: Metric) -> int:
    """How many of the last columns count labelled pixels."""
    return rows.shape[1] // 3 if metric.kind == "segmentation" else 1


def _estimated(metric: Metric, rows: Rows, seed: int) -> tuple[float, float, float]:
    """(value, low, high)."""
    counts, estimate = metric.grouped(rows)
    value = float(estimate(counts[None])[0]) + 0.0  # -0.0 becomes 0.0
    if metric.proportion:
        right = int((rows[:, 0] == rows[:, 1]).sum())
        return (right / len(rows), *wilson(right, len(rows)))
    if len(rows) == 1:
        return (value, *(metric.range or (value, value)))
    return (value, *bootstrap(estimate, counts, seed))
