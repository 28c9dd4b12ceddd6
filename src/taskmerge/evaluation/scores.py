"""The results of an evaluation as frozen values: what metrics return, what reports read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Score:
    """One number with its uncertainty. `low` and `high` are the 95% interval; `lower_is_better` marks errors."""

    value: float
    n: int
    low: float
    high: float
    lower_is_better: bool = False
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further numbers of the same outputs by name, such as calibration error."""


@dataclass(frozen=True)
class Row:
    """The score of one checkpoint on one task's split, by one head.

    `encoder` is the checkpoint's name (`base`, `expert:mnist`, or the file's), `head` the task whose head was used,
    `task` the task whose data. `corruption` and `severity` where the pictures were corrupted. `correct` holds one bool
    an item (classification), else None. `protocol` says what adapted checkpoints saw (split, horizon). `reliability`
    are bins of the predictions' confidence, for classifications.
    """

    encoder: str
    task: str
    head: str
    split: str
    metric: str
    score: Score
    normalised: float | None = None
    skipped: int = 0
    corruption: str | None = None
    severity: int | None = None
    correct: NDArray[np.bool_] | None = None
    protocol: str | None = None
    reliability: tuple[Mapping[str, float], ...] | None = None
    """Of each bin that has items: its place `bin` among 15 equal ones from 0, its items `n`, how many of them are
    `right`, and their mean `confidence`."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """What one checkpoint makes of a sample of n of a task's items, as the task's head sees them (of CLIP: of length 1;
    behind the task's adapter).

    `features` [n, D]; `predicted` [n] and `labels` [n] are classes, or values of a regression; `places` [n] are the
    items' places in the split. `fingerprint` is that of the task's data, `digest` the checkpoint's, `classes` are
    the classes' names, where the suite has them.
    """

    encoder: str
    task: str
    digest: str
    fingerprint: str
    features: NDArray[np.float32]
    predicted: NDArray[np.float64]
    labels: NDArray[np.float64]
    places: NDArray[np.int64]
    kind: str = "classification"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Average:
    """Plain and expert-relative mean of one checkpoint over its tasks."""

    encoder: str
    average: float
    normalised: float | None
    corruption: str | None = None
    severity: int | None = None


@dataclass(frozen=True)
class Report:
    """Everything that one `eval` found. `timing` is the only part that differs between two equal runs."""

    version: str
    suite: str
    split: str
    checkpoints: tuple[Mapping[str, Any], ...]
    data: tuple[Mapping[str, Any], ...]
    rows: tuple[Row, ...]
    averages: tuple[Average, ...]
    comparisons: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[Mapping[str, Any], ...] = ()
    correlations: tuple[Mapping[str, Any], ...] = ()
    checks: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    timing: Mapping[str, float] = field(default_factory=dict)
    features: tuple[FeatureSet, ...] = ()
    """Of samples of items, if they were asked for: kept in a file of their own (`evaluation.feature_files`)."""
