"""The pictures of an evaluation beside its scores: discrepancy, cross-task matrix, calibration, radar, features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmerge.evaluation.feature_files import NAME, of_report, read_features
from taskmerge.evaluation.scores import FeatureSet
from taskmerge.reports.calibration_figures import calibration_figures
from taskmerge.reports.cross_figures import cross_figures
from taskmerge.reports.discrepancy_figures import discrepancy_figures
from taskmerge.reports.feature_figures import feature_figures
from taskmerge.reports.figures import Figure
from taskmerge.reports.radar_figures import radar_figures


def kept_features(folder: Path | None, document: Mapping[str, Any]) -> tuple[FeatureSet, ...]:
    """The features of a report's samples, from its folder; none where none were kept, or those of another run.

    Raises BadFile for a damaged file.
    """
    if folder is None or not (folder / NAME).exists():
        return ()
    return of_report(read_features(folder / NAME), document)


def eval_views(document: Mapping[str, Any], features: tuple[FeatureSet, ...] = ()) -> list[Figure]:
    """Every plot that a report of `taskmerge eval` has something for, besides those of its scores."""
    return [
        *radar_figures(document), *discrepancy_figures(document), *cross_figures(document),
        *calibration_figures(document), *feature_figures(document, features),
    ]  # fmt: skip
