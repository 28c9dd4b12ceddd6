"""The pilot study's heat map: what heads trained with labels gain over the suite's, by task and merging coefficient."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.evaluation.metrics import METRICS
from taskmerge.reports.charting import colours, heat_map, listed_values, shown_names
from taskmerge.reports.figures import Figure

SUPERVISED, MERGE = "supervised_heads", "task_arithmetic"
Gains = Mapping[float, Mapping[str, float]]
"""Coefficient -> task -> gain in points."""


def pilot_figures(gains: Gains) -> list[Figure]:
    """The heat map; none for fewer coefficients than two."""
    tasks = shown_names(dict.fromkeys(task for of_tasks in gains.values() for task in of_tasks))
    if len(gains) < 2:
        return []
    rows: list[dict[str, Any]] = [
        {"x": f"{coefficient:g}", "y": tasks[task], "gain": float(of_tasks[task])}
        for coefficient, of_tasks in sorted(gains.items()) for task in of_tasks
    ]  # fmt: skip
    scale = colours([*(float(row["gain"]) for row in rows), -1e-9], least=2.0)  # a gain has a middle: none
    most = max(abs(float(row["gain"])) for row in rows)
    spec = heat_map(
        rows, across=[f"{coefficient:g}" for coefficient in sorted(gains)], down=list(tasks.values()),
        titles=("coefficient of task arithmetic", "task"),
        value=alt.Color("gain:Q", title="gain, points", scale=scale),
        tooltip=[alt.Tooltip("y:N", title="task"), alt.Tooltip("x:N", title="coefficient"),
                 alt.Tooltip("gain:Q", title="gain in points", format="+.1f")],
        text=alt.Text("gain:Q", format="+.0f"), pale=f"abs(datum.gain) < {0.6 * most:.6g}",
    )  # fmt: skip
    means = [(f"{value:g}", f"{_mean(of_tasks.values()):+.1f}") for value, of_tasks in sorted(gains.items())]
    return [
        Figure(
            name="pilot",
            title="What heads trained with labels could gain",
            caption="Gain in points of heads trained WITH labels over the suite's heads, both on the features of task "
            f"arithmetic at each coefficient, {len(tasks)} tasks; trained and scored on the same items: a bound of "
            "what heads alone can do, no result of a method. Differences are drawn without intervals.",
            alternative=f"Mean gain in points by coefficient: {listed_values(means)}.",
            spec=spec,
        )
    ]


def pilot_gains(adaptations: Iterable[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> Gains:
    """Gains from reports: of `adapt --method supervised_heads --init task_arithmetic`, each beside an evaluation of
    task arithmetic with the same coefficient and the suite's heads, on the same suite and split."""
    found: dict[float, dict[str, float]] = {}
    for document in adaptations:
        recipe, scores = document["recipe"], document["scores"]
        options = recipe.get("init_options", {})
        if document["method"] != SUPERVISED or recipe.get("init") != MERGE or scores is None:
            continue
        coefficient = _number(options.get("coefficient"))
        given = _given(document["suite"], scores["split"], coefficient, evaluations)
        gains = {
            row["task"]: 100 * (row["score"] - given[row["task"]])
            for row in scores["rows"]
            if row["task"] in given and METRICS[row["metric"]].percent and not METRICS[row["metric"]].lower_is_better
        }
        if coefficient is not None and gains:
            found[coefficient] = gains
    return found


def _given(
    suite: str, split: str, coefficient: float | None, evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, float]:  # fmt: skip
    """The scores by task of the merge with this coefficient."""
    found: dict[str, float] = {}
    for document in evaluations:
        if (document["suite"], document["split"]) != (suite, split):
            continue
        recipes = {one["name"]: one.get("recipe", {}) for one in document["checkpoints"]}
        for row in document["rows"]:
            recipe = recipes.get(row["checkpoint"]) or {}
            own = _number((recipe.get("options") or {}).get("coefficient"))
            if row["corruption"] is None and recipe.get("method") == MERGE and own == coefficient:
                found.setdefault(row["task"], float(row["score"]))
    return found


def _number(value: object) -> float | None:
    try:
        return round(float(str(value)), 6)
    except ValueError:
        return None


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / max(1, len(every))
