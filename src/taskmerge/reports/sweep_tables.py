"""Tables of sweeps: means over tasks at every point, with their intervals. Pure; imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from taskmerge.reports.tables import EMPTY, Cell, Table

Document = Mapping[str, Any]
NAMES: Mapping[str, str] = {
    "average": "average", "cart": "CART", "truncated_task_arithmetic": "truncated task arithmetic",
    "task_arithmetic": "task arithmetic",
}  # fmt: skip
"""What methods are called on pages."""
LOSSES = {"classification": "nats", "segmentation": "nats"}
"""Kinds of tasks whose losses can be averaged, by what they are in; others can with their own kind alone."""


def sweep_tables(report: Mapping[str, Any], *, references: bool = True) -> list[Table]:
    """The tables of the part `sweeps` of a report (or of that part alone): those that it has something for, and that of
    the `references` if it is wanted."""
    sweeps = report.get("sweeps", report)
    makers: Mapping[str, Callable[[Document], Table]] = {
        "references": _references, "rank": _rank, "coefficient": _coefficient, "routing": _routing,
        "subsets": _subsets, "components": _components, "landscape": _landscape, "pairs": _pairs,
    }  # fmt: skip
    return [make(sweeps) for kind, make in makers.items() if kind in sweeps and (references or kind != "references")]


def unit_of(sweeps: Document) -> bool:
    """Whether scores are shares, told in percent."""
    return all(task["percent"] and not task["lower_is_better"] for task in sweeps["tasks"])


def plain_in(sweeps: Document) -> bool:
    """Whether means are those of scores; metrics are unlike else, and means are relative to the experts."""
    return sweeps["references"]["average"]["average"] is not None


def scale_in(sweeps: Document) -> int:
    """What means are multiplied by: those of shares, and relative ones, are told in percent."""
    return 100 if unit_of(sweeps) or not plain_in(sweeps) else 1


def score_of(point: Document) -> tuple[float | None, float | None, float | None]:
    """The mean of a point with its interval; where metrics are unlike, the one relative to the experts, without."""
    if point["average"] is not None:
        return point["average"]["value"], point["average"]["low"], point["average"]["high"]
    return point["normalised"], None, None


def _cell(point: Document | None, sweeps: Document) -> Cell:
    if point is None or (mean := score_of(point))[0] is None:
        return EMPTY
    (value, low, high), scale = mean, scale_in(sweeps)
    if value is None or low is None or high is None:
        return Cell(f"{scale * (value or 0.0):z.1f}")
    text, margin = f"{scale * value:z.1f}", f"{scale * max(high - value, value - low):.1f}"
    return Cell(text, margin, f"{scale * low:.1f} to {scale * high:.1f}")


def _notes(sweeps: Document) -> tuple[str, ...]:
    """What the numbers are of."""
    sizes = [task["n"] for task in sweeps["tasks"]]
    items = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    means = "means over the tasks ± 95% interval" if unit_of(sweeps) else "means of scores relative to the experts'"
    return (f"{means}; split {sweeps['split']}, {items} items a task",)


def _references(sweeps: Document) -> Table:
    """Experts, average and base by task."""
    own = sweeps["references"]
    names = [name for name in ("experts", "average", "base") if name in own]
    tasks = [task["name"] for task in sweeps["tasks"]]
    cells = tuple(
        (*(_score(own[name]["scores"], task, sweeps) for task in tasks), _cell(own[name], sweeps)) for name in names
    )
    return Table("What sweeps are compared with", "model", (*tasks, "mean"), tuple(names), cells, _notes(sweeps))


def _score(scores: Sequence[Document], task: str, sweeps: Document) -> Cell:
    found = next((entry for entry in scores if entry["task"] == task), None)
    share = next(own["percent"] for own in sweeps["tasks"] if own["name"] == task)
    if found is None or found["score"] is None:
        return EMPTY
    scale, digits = (100, 1) if share else (1, 3)
    margin = max(found["high"] - found["score"], found["score"] - found["low"])
    return Cell(f"{scale * found['score']:z.{digits}f}", f"{scale * margin:.{digits}f}")


def _grid(
    sweeps: Document, title: str, across: str, line: Callable[[Document], str], points: Sequence[Document]
) -> Table:
    """A column for each value of what varies, a line for each of the rest."""
    columns = list(dict.fromkeys(point[across] for point in points))
    names = list(dict.fromkeys(map(line, points)))
    by_place = {(line(point), point[across]): point for point in points}
    cells = tuple(tuple(_cell(by_place.get((name, value)), sweeps) for value in columns) for name in names)
    told = tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in columns)
    return Table(title, across, told, tuple(names), cells, (*_notes(sweeps), *broken_among(points)))


def broken_among(points: Sequence[Document]) -> tuple[str, ...]:
    """A note on points that have no score."""
    count = sum(entry["score"] is None for point in points for entry in point["scores"])
    missing = "one score is" if count == 1 else f"{count:,} scores are"
    return (f"{missing} missing: outputs held NaN or infinity there",) if count else ()


def _rank(sweeps: Document) -> Table:
    def line(point: Document) -> str:
        name = NAMES[point["method"]]
        return name if point["direction"] == "proper" else f"{name}, reversed"

    return _grid(sweeps, "Score over rank", "rank", line, sweeps["rank"]["points"])


def _coefficient(sweeps: Document) -> Table:
    points = sweeps["coefficient"]["points"]
    return _grid(sweeps, "Score over the coefficient", "coefficient", lambda point: NAMES[point["method"]], points)


def _routing(sweeps: Document) -> Table:
    points = sweeps["routing"]["points"]
    return _grid(sweeps, "Direct routing over rank", "rank", lambda point: f"from the {point['origin']}", points)


def _subsets(sweeps: Document) -> Table:
    """Means over the subsets of a size, ± one standard error over them."""
    sizes = sweeps["subsets"]["sizes"]
    key, scale = "average" if plain_in(sweeps) else "normalised", scale_in(sweeps)
    columns = list(dict.fromkeys(size["tasks"] for size in sizes))
    names = list(dict.fromkeys(size["method"] for size in sizes))
    by_place = {(size["method"], size["tasks"]): size[key] for size in sizes}
    cells = tuple(tuple(_mean(by_place[name, count], scale) for count in columns) for name in names)
    notes = (
        "every subset is scored on its own tasks; ± one standard error over subsets",
        *broken_among(sweeps["subsets"]["points"]),
    )
    return Table(
        "Score over the number of merged tasks", "tasks", tuple(map(str, columns)),
        tuple(NAMES[name] for name in names), cells, notes,
    )  # fmt: skip


def _mean(mean: Document | None, scale: float) -> Cell:
    if mean is None:
        return EMPTY
    return Cell(f"{scale * mean['mean']:z.1f}", "" if mean["se"] is None else f"{scale * mean['se']:.1f}")


def _components(sweeps: Document) -> Table:
    """By task: how its largest components change its own loss and the others', exact."""
    points = sweeps["components"]["points"]
    tasks = list(dict.fromkeys(point["task"] for point in points))
    cells = []
    for task in tasks:
        own = [point for point in points if point["task"] == task and point["component"] == 1]
        changes = [change for point in own for change in point["changes"] if change["change"] is not None]
        sides = [[change["change"] for change in changes if (change["task"] == task) == mine] for mine in (True, False)]
        cells.append(tuple(Cell(f"{fmean(side):+.3g}") if side else EMPTY for side in sides))
    labels = sorted(set(sweeps["components"]["labels"].values()))
    notes = (
        "mean over matrices of the exact change when the largest component is added to the merge of the other tasks",
        f"losses against: {', '.join('labels' if one == 'true' else 'predictions of experts' for one in labels)}",
    )
    return Table(
        "Loss change of the largest component", "task", ("own loss", "loss of the others"), tuple(tasks), tuple(cells),
        notes,
    )  # fmt: skip


def _landscape(sweeps: Document) -> Table:
    """The models: where they are on the plane, how far off, and their mean loss."""
    landscape = sweeps["landscape"]
    cells = tuple(
        (
            *(Cell(f"{one[key]:.4g}") for key in ("x", "y", "distance")),
            EMPTY if (loss := mean_loss(one, sweeps)) is None else Cell(f"{loss:.4g}"),
        )
        for one in landscape["models"]
    )
    shares = " and ".join(f"{100 * share:.1f}%" for share in landscape["variance_shares"])
    return Table(
        "Models on the plane of their first two principal components", "model",
        ("first", "second", "off the plane", loss_title(sweeps)), tuple(one["model"] for one in landscape["models"]),
        cells,
        (f"the plane holds {shares} of the models' variance",),
    )  # fmt: skip


def loss_title(sweeps: Document) -> str:
    """What means of losses over tasks are called: unlike ones (nats, errors, angles) are relative to the experts'."""
    return "mean loss" if _alike(sweeps) else "mean loss relative to the experts'"


def mean_loss(point: Document, sweeps: Document) -> float | None:
    """The mean over tasks of the landscape's losses; None where one has none."""
    units: dict[str, float | None] = {}
    if not _alike(sweeps):
        for model in sweeps["landscape"]["models"]:
            units |= {entry["task"]: entry["mean"] for entry in model["losses"] if entry["task"] == model["model"]}
    found = [(entry["mean"], units.get(entry["task"], 1.0)) for entry in point["losses"]]
    known = [loss / unit for loss, unit in found if loss is not None and unit]
    return fmean(known) if len(known) == len(found) else None


def _alike(sweeps: Document) -> bool:
    """Whether all tasks have one kind of loss: classes and maps of classes both have nats."""
    return len({LOSSES.get(task["kind"], task["kind"]) for task in sweeps["tasks"]}) == 1


def _pairs(sweeps: Document) -> Table:
    """Pearson's correlation of cross-task and merge performance."""
    names = {"per_pair": "ordered pairs", "per_model": "models"}
    cells = tuple(_correlation(sweeps["pairs"][key]) for key in names)
    notes = ("scores relative to the task's expert; pairs share models, so that per pair p and interval are too sure",)
    return Table(
        "Cross-task against merge performance", "over", ("r", "95% interval", "p", "n"), tuple(names.values()), cells,
        notes,
    )  # fmt: skip


def _correlation(found: Document) -> tuple[Cell, ...]:
    if found["r"] is None:
        return EMPTY, EMPTY, EMPTY, Cell(str(found["n"]))
    span = EMPTY if found["low"] is None else Cell(f"{found['low']:.2f} to {found['high']:.2f}")
    return Cell(f"{found['r']:.2f}"), span, Cell(f"{found['p']:.2g}"), Cell(str(found["n"]))
