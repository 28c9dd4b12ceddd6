"""Small documents of sweeps, by the published schema, with whatever names tasks have."""

from collections.abc import Sequence
from typing import Any


def scores(tasks: Sequence[str], value: float) -> list[dict[str, Any]]:
    return [{"task": task, "score": value, "low": value - 0.1, "high": value + 0.1, "n": 50} for task in tasks]


def point(tasks: Sequence[str], value: float, *, plain: bool = True) -> dict[str, Any]:
    average = {"value": value, "low": value - 0.05, "high": value + 0.05} if plain else None
    return {"scores": scores(tasks, value), "average": average, "normalised": value / 0.9}


def losses(tasks: Sequence[str], value: float) -> list[dict[str, Any]]:
    return [{"task": task, "mean": value, "se": 0.1} for task in tasks]


def document(tasks: Sequence[str] = ("ants", "bees", "cats"), *, plain: bool = True) -> dict[str, Any]:
    """Every kind of sweep of three tasks; `plain`: they all have one metric, else the last is an error."""
    kinds = ["rank", "coefficient", "routing", "subsets", "components", "landscape", "pairs"]
    metrics = [("classification", "accuracy", False, True)] * (len(tasks) - 1)
    metrics.append(("classification", "accuracy", False, True) if plain else ("depth", "abs_error", True, False))
    about = [
        {"name": task, "kind": kind, "metric": metric, "lower_is_better": lower, "percent": percent, "n": 50,
         "fingerprint": "f", "loss_labels": "true"}
        for task, (kind, metric, lower, percent) in zip(tasks, metrics, strict=True)
    ]  # fmt: skip
    grid = [
        {"method": method, "direction": direction, "rank": rank, "coefficient": 1.0,
         **point(tasks, value, plain=plain)}
        for method, value in (("cart", 0.6), ("truncated_task_arithmetic", 0.4))
        for direction in ("proper", "reversed")
        for rank in ("0.1", "1.0")
    ]  # fmt: skip
    named = ("method", "direction", "rank", "coefficient")
    at = {"x": 0.5, "y": -0.5, "distance": 0.25, "losses": losses(tasks, 1.5)}
    way = [{**{key: own[key] for key in named}, **at} for own in grid if own["direction"] == "proper"]
    places = [(column, row) for row in range(3) for column in range(3)]
    judged = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 50}
    return {
        "suite": "tiny", "split": "test", "limit": 50, "seed": 0, "kinds": kinds, "base": "0",
        "experts": dict.fromkeys(tasks, "1"), "tasks": about,
        "references": {"experts": point(tasks, 0.9, plain=plain), "average": point(tasks, 0.5, plain=plain),
                       "base": point(tasks, 0.3, plain=plain)},
        "rank": {"points": grid},
        "coefficient": {"points": [{**own, "coefficient": value} for own in grid[:1] for value in (0.5, 1.0)]},
        "routing": {"points": [{"origin": origin, "rank": rank, **point(tasks, 0.8, plain=plain)}
                               for origin in ("average", "base") for rank in ("0.1", "1.0")]},
        "subsets": {
            "points": [{"method": "average", "tasks": [task], **point([task], 0.9, plain=plain)} for task in tasks],
            "sizes": [{"method": method, "tasks": size, "subsets": 3,
                       "average": {"mean": 0.5, "se": 0.1, "count": 3} if plain else None,
                       "normalised": {"mean": 0.6, "se": None, "count": 1}}
                      for method in ("average", "cart") for size in (1, 2)],
        },
        "components": {
            "labels": dict.fromkeys(tasks, "true"), "coefficient": 0.3,
            "points": [{"task": task, "matrix": "blocks.0.w", "component": component, "value": 1.0, "share": 0.5,
                        "changes": [{"task": other, "change": -0.1 * (task == other), "se": 0.01, "proxy": None}
                                    for other in tasks]}
                       for task in tasks for component in (1, 2)],
        },
        "landscape": {
            "labels": dict.fromkeys(tasks, "true"), "variance_shares": [0.5, 0.25], "side": 3, "around": 3,
            "models": [{"model": model, "x": float(place), "y": 1.0, "distance": 0.1, "losses": losses(tasks, 2.0)}
                       for place, model in enumerate((*tasks, "average", "base"))],
            "grid": [{"column": column, "row": row, "x": float(column), "y": float(row), "losses": losses(tasks, 1.0)}
                     for column, row in places],
            "near": [{"task": task, "column": column, "row": row, "x": 0.0, "y": 0.0, "losses": losses([task], 1.0)}
                     for task in tasks for column, row in places],
            "ways": way,
        },
        "pairs": {
            "pairs": [{"encoder": first, "task": second, "cross": judged, "merged": judged, "cross_normalised": 0.5,
                       "merged_normalised": 0.7} for first in tasks for second in tasks if first != second],
            "per_pair": {"r": 0.4, "p": 0.03, "low": 0.1, "high": 0.7, "n": 6},
            "per_model": {"r": None, "p": None, "low": None, "high": None, "n": 2},
        },
    }  # fmt: skip
