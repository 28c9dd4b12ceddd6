"""The pictures of an evaluation: numbers computed again from the report, every plot drawn, hostile names as data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from figure_cases import HOSTILE, check, rows_of
from report_cases import DENSE, TEXT, report
from taskmerge.errors import BadFile
from taskmerge.evaluation.estimates import BINS, reliability
from taskmerge.evaluation.feature_files import NAME, read_features, write_features
from taskmerge.evaluation.intervals import wilson
from taskmerge.evaluation.metrics import contributions, score
from taskmerge.evaluation.results import dumps, from_json, to_json
from taskmerge.evaluation.scores import FeatureSet, Report
from taskmerge.reports.calibration_figures import calibration_figures, pooled
from taskmerge.reports.cross_figures import cross_figures
from taskmerge.reports.discrepancy_figures import discrepancy_figures
from taskmerge.reports.feature_figures import feature_figures, kept_features
from taskmerge.reports.feature_maps import neighbour_share, neighbours, principal
from taskmerge.reports.figures import Figure
from taskmerge.reports.radar_figures import radar_figures

ROUNDED = 1e-3
WHOLE = report(cross=True, compare=True, corruptions=["jpeg"])


def views(found: Report) -> dict[str, Figure]:
    """Every figure by its name."""
    document = to_json(found)
    makers = (radar_figures, discrepancy_figures, cross_figures, calibration_figures)
    return {figure.name: figure for make in makers for figure in make(document)}


def feature_sets(found: Report, n: int = 40, classes: int = 9, width: int = 8) -> tuple[FeatureSet, ...]:
    """Random features of every checkpoint on every task; the experts' know their labels."""
    random = np.random.default_rng(0)
    sets = []
    for task in (one["task"] for one in found.data):
        labels = random.integers(0, classes, n).astype(np.float64)
        for encoder in ("base", "merged", f"expert:{task}"):
            centres = random.standard_normal((classes, width)) * (8 if encoder.startswith("expert") else 0.5)
            features = (centres[labels.astype(int)] + random.standard_normal((n, width))).astype(np.float32)
            predicted = np.where(random.random(n) < 0.5, labels, random.integers(0, classes, n)).astype(np.float64)
            sets.append(FeatureSet(encoder, task, "00", f"{task}0", features, predicted, labels, np.arange(n)))
    return tuple(sets)


def test_every_plot_is_drawn() -> None:
    found = views(WHOLE)
    assert set(found) == {
        "radar", "discrepancy", "cross", "cross-relative", "reliability", "calibration-error",
    }  # fmt: skip
    check(list(found.values()))


def test_nothing_is_drawn_of_what_was_not_measured() -> None:
    assert set(views(report({"a": "angle"}))) == set()
    assert set(views(report(TEXT))) == {"radar", "reliability", "calibration-error"}
    assert feature_figures(to_json(WHOLE), ()) == []


def test_errors_are_drawn_relative_to_the_experts() -> None:
    figure = views(report(DENSE))["radar"]
    check([figure])
    assert "relative to the task's own expert" in figure.caption
    assert {row["checkpoint"] for row in rows_of(figure) if "checkpoint" in row} == {"base", "merged"}


def test_discrepancies_are_counted_from_the_bits() -> None:
    """Expert right and checkpoint wrong, from the bits that the report keeps."""
    bits = {(row.encoder, row.task): row.correct for row in WHOLE.rows if row.corruption is None}
    rows = rows_of(views(WHOLE)["discrepancy"])
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        expert, own = bits[f"expert:{row['task']}", row["task"]], bits[row["checkpoint"], row["task"]]
        assert expert is not None
        assert own is not None
        lost = row["kind"].startswith("lost")
        count = int((expert & ~own).sum() if lost else (own & ~expert).sum())
        assert row["share"] == pytest.approx(count / len(own), rel=ROUNDED)
        assert (row["low"], row["high"]) == pytest.approx(wilson(count, len(own)), rel=ROUNDED)
        assert row["at"] == (-row["share"] if lost else row["share"])


def test_the_cross_matrix_is_that_of_the_rows() -> None:
    found, bits = views(WHOLE), {(row.encoder, row.task): row.correct for row in WHOLE.rows if row.corruption is None}
    for row in rows_of(found["cross"]):
        if row["x"] == "flags":  # mean per class
            continue
        assert row["value"] == pytest.approx(bits[f"expert:{row['y']}", row["x"]].mean(), rel=ROUNDED)
    values = {(row["y"], row["x"]): row["value"] for row in rows_of(found["cross"])}
    for row in rows_of(found["cross-relative"]):
        own = values[row["x"], row["x"]]
        assert row["value"] == pytest.approx(values[row["y"], row["x"]] / own, rel=3 * ROUNDED)
    assert len(values) == 9


@given(st.integers(1, 300), st.integers(2, 12), st.integers(0, 10**6))
def test_bins_come_to_the_calibration_error(n: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = 3 * torch.randn(n, classes, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    bins = reliability(contributions("accuracy", outputs, labels))
    assert sum(own["n"] for own in bins) == n
    gaps = sum(abs(own["confidence"] * own["n"] - own["right"]) for own in bins) / n
    assert gaps == pytest.approx(score("ece", outputs, labels)[0].value, abs=1e-9)
    sure, predicted = outputs.softmax(1).max(1)
    for own in bins:
        inside = (sure > own["bin"] / BINS - 1e-6) & (sure <= (own["bin"] + 1) / BINS + 1e-6)
        assert own["right"] <= int((predicted[inside] == labels[inside]).sum()) + 1


def test_reliability_curves_pool_the_tasks() -> None:
    rows = [row for row in to_json(WHOLE)["rows"] if row["checkpoint"] == "merged" and row["corruption"] is None]
    curve = pooled(rows)
    assert sum(point["n"] for point in curve) == sum(row["n"] for row in rows)
    right = sum(int(row.correct.sum()) for row in WHOLE.rows if row.encoder == "merged" and row.corruption is None)
    assert sum(round(point["accuracy"] * point["n"]) for point in curve) == right
    drawn = [row for row in rows_of(views(WHOLE)["reliability"]) if row["checkpoint"] == "merged"]
    for point, row in zip(curve, drawn, strict=True):
        assert [row[key] for key in ("n", "accuracy", "confidence", "low", "high")] == pytest.approx(
            [point[key] for key in ("n", "accuracy", "confidence", "low", "high")], rel=ROUNDED
        )
        assert (point["low"], point["high"]) == wilson(round(point["accuracy"] * point["n"]), int(point["n"]))


def test_bins_are_in_the_report_and_come_back() -> None:
    back = from_json(to_json(WHOLE))
    assert dumps(back) == dumps(WHOLE)
    assert all(row.reliability for row in back.rows)
    document = to_json(WHOLE)
    for row in document["rows"]:
        del row["reliability"]  # as earlier versions wrote it
    assert all(row.reliability is None for row in from_json(document).rows)
    assert "reliability" not in {figure.name for figure in calibration_figures(document)}


def test_a_radar_has_a_corner_a_task() -> None:
    figure = views(WHOLE)["radar"]
    corners = {(row["checkpoint"], row["task"]): row for row in rows_of(figure) if "value" in row}
    scores = {(row.encoder, row.task): row.score.value for row in WHOLE.rows if row.corruption is None}
    assert len(corners) == 3 * 3
    for (checkpoint, task), row in corners.items():
        value = scores[f"expert:{task}" if checkpoint == "experts" else checkpoint, task]
        assert row["value"] == pytest.approx(value, rel=ROUNDED)
        assert np.hypot(row["x"], row["y"]) == pytest.approx(value, rel=2 * ROUNDED)
    assert radar_figures(to_json(report({"a": "accuracy", "b": "accuracy"}))) == []


def test_hostile_names_are_data() -> None:
    tasks = dict.fromkeys(HOSTILE[:3], "accuracy")
    found = report(tasks, HOSTILE[3:], cross=True, compare=True, n=20)
    check(list(views(found).values()))
    check(feature_figures(to_json(found), _named(feature_sets(found), HOSTILE[3])))


def _named(sets: tuple[FeatureSet, ...], name: str) -> tuple[FeatureSet, ...]:
    return tuple(replace(own, encoder=name) if own.encoder == "merged" else own for own in sets)


def test_many_checkpoints_and_tasks_stay_small() -> None:
    found = report(dict.fromkeys((f"t{place}" for place in range(12)), "accuracy"), [f"m{p}" for p in range(9)], n=20,
                   compare=True)  # fmt: skip
    figures = views(found)
    check(list(figures.values()))
    assert len({row["checkpoint"] for row in rows_of(figures["calibration-error"])}) == 6
    assert "4 that lose least of 10 checkpoints" in figures["discrepancy"].caption


# --- features --------------------------------------------------------------------------------------------------


def test_feature_maps_are_drawn_and_tell_neighbours() -> None:
    sets = feature_sets(WHOLE)
    figures = feature_figures(to_json(WHOLE), sets)
    check(figures)
    assert len(figures) == 2
    for figure in figures:
        rows = rows_of(figure)
        assert {row["map"] for row in rows} == {
            f"{name}, {kind} by {by}" for name in ("base", "merged", "experts") for kind in ("PCA", "t-SNE")
            for by in ("label", "prediction")
        }  # fmt: skip
        assert len(rows) == 4 * 3 * 40
        assert max(abs(row[axis]) for row in rows for axis in "xy") <= 1
        assert len({row["of"] for row in rows}) == 8
        assert "others" in {row["of"] for row in rows}
    own = next(one for one in sets if one.task == "mnist" and one.encoder == "expert:mnist")
    alike, n = neighbour_share(own.features, own.labels)
    assert any(f"label for {100 * alike / n:.1f}%" in figure.alternative for figure in figures)


def test_principal_components_are_those_of_the_covariance() -> None:
    random = np.random.default_rng(1)
    features = (random.standard_normal((30, 5)) * [5, 3, 1, 0.5, 0.1]).astype(np.float32)
    plane = principal(features)
    values, vectors = np.linalg.eigh(np.cov(features.astype(np.float64).T))
    for place in range(2):
        axis = vectors[:, -1 - place]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        np.testing.assert_allclose(plane.points[:, place], (features - features.mean(0)) @ axis, atol=1e-4)
    assert plane.share == pytest.approx(values[-2:].sum() / values.sum())


def test_neighbours_are_the_nearest() -> None:
    random = np.random.default_rng(2)
    features, labels = random.standard_normal((25, 3)).astype(np.float32), random.integers(0, 3, 25).astype(np.float64)
    count = 0
    for place in range(25):
        others = [other for other in range(25) if other != place]
        nearest = min(others, key=lambda other: float(np.linalg.norm(features[place] - features[other])))
        count += labels[nearest] == labels[place]
    assert neighbour_share(features, labels) == (count, 25)


def test_maps_are_the_same_again_and_keep_groups_together() -> None:
    random = np.random.default_rng(3)
    groups = np.repeat([0, 1], 15)
    features = (random.standard_normal((30, 6)) + 30 * groups[:, None]).astype(np.float32)
    first, second = neighbours(features), neighbours(features)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.points, second.points)
    assert neighbour_share(first.points.astype(np.float32), groups.astype(np.float64)) == (30, 30)


def test_items_all_alike_or_too_few_have_no_map_of_neighbours() -> None:
    assert neighbours(np.ones((10, 4), dtype=np.float32)) is None
    assert neighbours(np.eye(9, dtype=np.float32)) is None
    assert principal(np.ones((10, 4), dtype=np.float32)).share == 0.0
    one = [replace(own, features=np.ones_like(own.features)) for own in feature_sets(WHOLE)]
    check(feature_figures(to_json(WHOLE), one))


def test_of_many_classes_the_commonest_are_drawn() -> None:
    figure = feature_figures(to_json(WHOLE), feature_sets(WHOLE, n=120, classes=60))[0]
    by_label = [row["of"] for row in rows_of(figure) if row["map"].endswith("by label")]
    assert len(set(by_label)) == 7
    assert "others" not in by_label
    assert "of the 7 commonest of" in figure.caption


def test_regressions_are_coloured_by_value() -> None:
    found = report({"sts": "pearson", "other": "accuracy", "third": "accuracy"})
    sets = [replace(own, kind="regression", labels=own.labels / 3) for own in feature_sets(found)]
    figures = feature_figures(to_json(found), sets)
    check(figures)
    assert all("correlation of prediction and label" in figure.alternative for figure in figures)


def test_features_come_back_from_their_file(tmp_path: Path) -> None:
    sets = tuple(replace(own, classes=(*HOSTILE, "x", "y", "z")) for own in feature_sets(WHOLE))
    write_features(tmp_path / NAME, sets)
    for own, read in zip(sets, read_features(tmp_path / NAME), strict=True):
        for key, value in vars(own).items():
            assert np.array_equal(getattr(read, key), value)
    assert len(kept_features(tmp_path, to_json(WHOLE))) == len(sets)
    assert kept_features(tmp_path, to_json(report(seed=5))) == ()  # of other items
    assert kept_features(None, to_json(WHOLE)) == ()
    check(feature_figures(to_json(WHOLE), sets))


@pytest.mark.parametrize("change", ["kind", "shape", "nan", "lacks"])
def test_damaged_features_are_refused(tmp_path: Path, change: str) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    write_features(tmp_path / NAME, feature_sets(WHOLE)[:2])
    with safe_open(tmp_path / NAME, framework="np") as file:
        said: dict[str, Any] = dict(file.metadata())
    tensors = load_file(tmp_path / NAME)
    if change == "kind":
        said["taskmerge"] = said["taskmerge"].replace('"kind":"features"', '"kind":"head"')
    elif change == "shape":
        tensors["0.labels"] = tensors["0.labels"][1:]
    elif change == "nan":
        tensors["0.features"][0, 0] = np.nan
    else:
        del tensors["1.places"]
    save_file(tensors, tmp_path / "bad.safetensors", said)
    with pytest.raises(BadFile):
        read_features(tmp_path / "bad.safetensors")
