"""Metrics: values against scikit-learn, SciPy and plain loops, resamples against items written out again."""

import math
import time
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as learn

from report_cases import CLASSES, labels_for, outputs_for
from taskmerge.errors import BadFile, BadNumber, Mismatch, UsageError
from taskmerge.evaluation.intervals import wilson
from taskmerge.evaluation.metrics import METRICS, contributions, score, score_of
from taskmerge.specs import suite_tasks

CLASSIFICATIONS = [name for name, one in METRICS.items() if one.kind == "classification"]


def case(metric: str, n: int, seed: int = 0, skill: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = labels_for(metric, n, generator)
    return outputs_for(metric, labels, skill, generator), labels


def ece_by_hand(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The definition with loops: bins (0, 1/15], (1/15, 2/15] and so on."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for scores, label in zip(outputs.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(one - max(scores)) for one in scores)
        sure = 1 / total
        place = next(number for number in range(15) if sure <= (number + 1) / 15 + 1e-9)
        bins[place].append((sure, scores.index(max(scores)) == label))
    gaps = [abs(sum(sure for sure, _ in one) - sum(right for _, right in one)) for one in bins]
    return sum(gaps) / len(labels)


def by_library(metric: str, outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The metric of whole outputs as scikit-learn, SciPy or a loop has it."""
    said = outputs.argmax(1).numpy() if METRICS[metric].kind in ("classification", "segmentation") else outputs.numpy()
    true = labels.numpy()
    match metric:
        case "accuracy":
            return float(learn.accuracy_score(true, said))
        case "mean_per_class":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a class that is predicted and never labelled
                return float(learn.balanced_accuracy_score(true, said))
        case "matthews":
            return float(learn.matthews_corrcoef(true, said))
        case "f1":
            return float(learn.f1_score(true, said))
        case "ece":
            return ece_by_hand(outputs, labels)
        case "pearson":
            return float(stats.pearsonr(said, true).statistic)
        case "spearman":
            return float(stats.spearmanr(said, true).statistic)
        case "pearson+spearman":
            return (by_library("pearson", outputs, labels) + by_library("spearman", outputs, labels)) / 2
        case "miou":
            known = true >= 0
            return float(learn.jaccard_score(true[known], said[known], average="macro"))
        case "pixel_accuracy":
            known = true >= 0
            return float(learn.accuracy_score(true[known], said[known]))
        case "abs_error":
            return float(learn.mean_absolute_error(true[true != 0], said[true != 0]))
        case "rel_error":
            return float(learn.mean_absolute_percentage_error(true[true != 0], said[true != 0]))
    cosines = torch.nn.functional.cosine_similarity(outputs.double(), labels.double(), dim=1)
    return float(cosines.clamp(-1, 1).acos().mean()) * 180 / math.pi


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_the_value_is_the_librarys(metric: str, seed: int) -> None:
    outputs, labels = case(metric, 80, seed)
    found, _ = score(metric, outputs, labels)
    assert found.value == pytest.approx(by_library(metric, outputs, labels), rel=1e-6)
    assert found.n == 80
    assert found.lower_is_better == (metric in ("ece", "abs_error", "rel_error", "angle"))


@pytest.mark.parametrize("metric", METRICS)
def test_a_resample_scores_what_its_items_written_out_score(metric: str) -> None:
    """Estimates of weights [B, G] against the library on each item repeated as often as its weight says."""
    outputs, labels = case(metric, 30, 4)
    if METRICS[metric].kind == "regression":
        outputs, labels = (outputs * 2).round(), (labels * 2).round()  # ties
    rows = contributions(metric, outputs, labels)
    order = np.arange(30)
    if METRICS[metric].kind == "regression" and metric != "pearson":
        order = np.argsort(rows[:, 0], kind="stable")
    if metric == "ece":
        order = np.argsort(np.ceil(rows[:, 2] * 15), kind="stable")
    drawn = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=20)
    counts, estimate = METRICS[metric].grouped(rows)
    weights = drawn[:, order]
    if len(counts) < 30:  # items that count alike are one group, in the order of their values
        pair = rows[:, :2].copy()
        if metric not in ("matthews", "f1"):
            pair = np.stack([rows[:, 0] * (metric != "accuracy"), rows[:, 0] == rows[:, 1]], axis=1)
        _, which = np.unique(pair, axis=0, return_inverse=True)
        weights = np.stack([np.bincount(which.ravel(), one, len(counts)) for one in drawn]).astype(np.int64)
        assert counts.tolist() == np.bincount(which.ravel()).tolist()
    wanted = []
    for one in drawn:
        picked = torch.from_numpy(np.repeat(np.arange(30), one))
        wanted.append(by_library(metric, outputs[picked], labels[picked]))
    assert estimate(weights) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_holds_the_value_and_follows_the_seed(metric: str) -> None:
    outputs, labels = case(metric, 300)
    found, _ = score(metric, outputs, labels)
    assert found.low < found.high
    if metric != "ece":  # biased upwards in resamples
        assert found.low <= found.value <= found.high
    assert score(metric, outputs, labels)[0] == found
    other, _ = score(metric, outputs, labels, seed=1)
    assert (other.low, other.high) != (found.low, found.high) or METRICS[metric].proportion
    few, _ = score(metric, outputs[:30], labels[:30])
    assert few.high - few.low > found.high - found.low


def test_accuracy_has_wilsons_interval_and_its_bits() -> None:
    outputs, labels = case("accuracy", 200)
    found, correct = score("accuracy", outputs, labels)
    assert correct is not None
    assert correct.tolist() == (outputs.argmax(1) == labels).tolist()
    assert (found.low, found.high) == wilson(int(correct.sum()), 200)
    assert set(found.extra) == {"ece", "ece_low", "ece_high"}
    assert found.extra["ece"] == score("ece", outputs, labels)[0].value


@pytest.mark.parametrize("metric", ["pearson+spearman", "miou", "abs_error"])
def test_what_is_told_beside_is_the_metric_itself(metric: str) -> None:
    outputs, labels = case(metric, 40)
    found, correct = score(metric, outputs, labels)
    assert correct is None
    for name in METRICS[metric].beside:
        alone, _ = score(name, outputs, labels)
        assert (found.extra[name], found.extra[f"{name}_low"], found.extra[f"{name}_high"]) == (
            alone.value, alone.low, alone.high,
        )  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_batches_joined_score_the_same(metric: str) -> None:
    outputs, labels = case(metric, 50)
    rows = np.concatenate([contributions(metric, outputs[a:b], labels[a:b]) for a, b in ((0, 7), (7, 50))])
    whole, _ = score(metric, outputs, labels)
    assert score_of(metric, rows)[0] == whole


def test_the_lowest_of_equal_scores_is_the_prediction() -> None:
    outputs = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    _, correct = score("accuracy", outputs, torch.tensor([0, 1]))
    assert correct is not None
    assert correct.all()


@pytest.mark.parametrize("metric", METRICS)
def test_one_item_has_the_widest_interval(metric: str) -> None:
    outputs, labels = case(metric, 1, 3)
    found, _ = score(metric, outputs, labels)
    assert all(map(math.isfinite, (found.value, found.low, found.high, *found.extra.values())))
    if metric == "accuracy":
        assert (found.low, found.high) == wilson(int(found.value), 1)
    elif METRICS[metric].range is not None:
        assert (found.low, found.high) == METRICS[metric].range


@pytest.mark.parametrize("metric", CLASSIFICATIONS)
@pytest.mark.parametrize("kind", ["all right", "all wrong", "one class", "constant"])
def test_degenerate_classifications_are_finite(metric: str, kind: str) -> None:
    labels = torch.zeros(20, dtype=torch.long) if kind == "one class" else torch.arange(20) % CLASSES
    said = {"all right": labels, "all wrong": (labels + 1) % CLASSES}.get(kind, torch.zeros_like(labels))
    found, _ = score(metric, 5.0 * torch.nn.functional.one_hot(said, CLASSES), labels)
    assert all(map(math.isfinite, (found.value, found.low, found.high, *found.extra.values())))
    if metric in ("accuracy", "mean_per_class"):
        assert found.value == {"all right": 1.0, "all wrong": 0.0, "one class": 1.0}.get(kind, found.value)
    if metric == "matthews":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a single label
            assert found.value == pytest.approx(learn.matthews_corrcoef(labels, said), abs=1e-12)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson+spearman"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_correlation_with_a_constant_is_zero(metric: str, constant: float) -> None:
    varied = torch.randn(50, generator=torch.Generator().manual_seed(0))
    flat = torch.full((50,), constant)
    for outputs, labels in ((flat, varied), (varied, flat), (flat, flat)):
        found, _ = score(metric, outputs, labels)
        assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_correlations_do_not_mind_scale_or_offset() -> None:
    outputs, labels = case("pearson", 100)
    found, _ = score("pearson+spearman", outputs, labels)
    moved, _ = score("pearson+spearman", outputs.double() * 1e150 + 1e151, labels.double() * 1e-150)
    assert moved.value == pytest.approx(found.value, abs=1e-9)


def test_regression_outputs_may_be_a_column() -> None:
    outputs, labels = case("pearson", 20)
    assert score("pearson", outputs[:, None], labels) == score("pearson", outputs, labels)


def test_pixels_without_a_class_count_nowhere() -> None:
    outputs, labels = case("miou", 6)
    found, _ = score("miou", outputs, labels)
    hidden = labels.clone()
    hidden[labels == -1] = 255
    assert score("miou", outputs, hidden)[0] == found
    spoilt = outputs.clone()
    spoilt.movedim(1, -1)[labels == -1] = torch.arange(CLASSES).float()
    assert score("pixel_accuracy", spoilt, labels)[0] == score("pixel_accuracy", outputs, labels)[0]


def test_255_is_a_class_where_there_are_so_many() -> None:
    labels = torch.full((1, 2, 2), 255)
    outputs = torch.nn.functional.one_hot(labels, 300).movedim(-1, 1).float()
    assert score("pixel_accuracy", outputs, labels)[0].value == 1.0


def test_depth_without_a_measurement_and_zero_normals_count_nowhere() -> None:
    labels = torch.tensor([[[2.0, 0.0], [4.0, 0.0]]])
    outputs = torch.tensor([[[3.0, 9.0], [3.0, 9.0]]])
    assert score("abs_error", outputs, labels)[0].value == 1.0
    assert score("rel_error", outputs[:, None], labels[:, None])[0].value == (1 / 2 + 1 / 4) / 2
    true = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 2.0, 0]]).T.reshape(1, 3, 1, 3)
    said = torch.tensor([[3.0, 0, 0], [5, 0, 0], [1.0, 0, 0]]).T.reshape(1, 3, 1, 3)
    assert score("angle", said, true)[0].value == pytest.approx(45.0)  # 0 and 90 degrees
    assert score("angle", torch.zeros_like(said), true)[0].value == pytest.approx(90.0)
    many = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert score("angle", 0.3 * many, many)[0].value == pytest.approx(0, abs=1e-4)  # no cosine is above 1
    assert score("angle", -0.3 * many, many)[0].value == pytest.approx(180, abs=1e-4)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "error"),
    [
        ("accuracy", torch.zeros(3, 2), torch.tensor([0, 1, 2]), BadFile),
        ("accuracy", torch.zeros(3, 2), torch.tensor([0, -1, 1]), BadFile),
        ("accuracy", torch.zeros(3, 2), torch.tensor([0, 1]), Mismatch),
        ("accuracy", torch.zeros(3), torch.tensor([0, 1, 1]), Mismatch),
        ("accuracy", torch.tensor([[0.0, math.nan]]), torch.tensor([0]), BadNumber),
        ("accuracy", torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), BadFile),
        ("pearson", torch.zeros(3, 2), torch.zeros(3), Mismatch),
        ("pearson", torch.zeros(3), torch.zeros(3, 1), Mismatch),
        ("pearson", torch.zeros(3), torch.tensor([0, math.nan, 1]), BadFile),
        ("pearson", torch.tensor([0, math.inf, 1]), torch.zeros(3), BadNumber),
        ("miou", torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 4, dtype=torch.long), Mismatch),
        ("miou", torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 2), BadFile),
        ("miou", torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), -1), BadFile),
        ("abs_error", torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), BadFile),
        ("angle", torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), Mismatch),
        ("angle", torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 3), Mismatch),
        ("acuracy", torch.zeros(1, 2), torch.tensor([0]), UsageError),
    ],
)
def test_what_cannot_be_scored_is_refused(
    metric: str, outputs: torch.Tensor, labels: torch.Tensor, error: type[Exception]
) -> None:
    with pytest.raises(error):
        score(metric, outputs, labels)


def test_suites_know_the_same_metrics() -> None:
    named = {name: kind for kind, names in suite_tasks.METRICS.items() for name in names}
    assert {name: METRICS[name].kind for name in named} == named
    assert set(METRICS) - set(named) == {"ece"}  # told beside every classification


@pytest.mark.slow
@pytest.mark.parametrize("metric", [name for name in METRICS if METRICS[name].kind in ("classification", "regression")])
def test_ten_thousand_items_are_scored_at_once(metric: str) -> None:
    outputs, labels = case(metric, 10_000)
    score(metric, outputs, labels)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        score(metric, outputs, labels)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "truth"), [("pearson", 1 / math.sqrt(2)), ("spearman", 6 / math.pi * math.asin(math.sqrt(2) / 4))]
)
def test_the_bootstrap_of_a_correlation_covers(metric: str, truth: float) -> None:
    """Of 300 samples of y = x + noise; the population's Spearman is 6 / pi * asin(r / 2)."""
    held = 0
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, generator=generator)
        found, _ = score(metric, x, x + torch.randn(200, generator=generator), seed=seed)
        held += found.low <= truth <= found.high
    assert 0.9 <= held / 300 <= 0.99
