"""What adaptations end with, as text: tasks down, scores with their intervals; over seeds, means with deviations."""

from collections.abc import Callable, Mapping
from typing import Any

from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.scores import Report
from taskmerge.reports.render import drawn
from taskmerge.reports.tables import AVERAGE, Cell, Table, scores
from taskmerge.workflows.adapt_seeds import SeedRun, Seeds


def scores_text(report: Report, *, width: int | None = None) -> str:
    """The scores of an adapted model in percent (errors in their own units), a line a task and the average below.

    As wide as stderr's terminal, or 80 columns where there is none.
    """
    table = scores(report)
    return "" if table is None else drawn([table.transposed("task")], width=width, stderr=True).rstrip("\n")


def candidates_text(chosen: Mapping[str, Any], *, width: int | None = None) -> str:
    """What was tried, for a terminal."""
    return drawn([candidates_table(chosen)], width=width, stderr=True).rstrip("\n")


def candidates_table(chosen: Mapping[str, Any]) -> Table:
    """What was tried: agreement with the experts on held-out items, and what labels say where there are any."""
    scored = any(one["score"] is not None for one in chosen["tried"])
    columns = ("agreement", "average") if scored else ("agreement",)
    keys = ("agreement", "score")[: len(columns)]
    cells = tuple(
        tuple(Cell("–" if one[key] is None else f"{100 * one[key]:.1f}") for key in keys) for one in chosen["tried"]
    )
    names = tuple(f"{one['name']}{' *' if one['name'] == chosen['candidate'] else ''}" for one in chosen["tried"])
    notes = ("* chosen by agreement, without a label",)
    return Table("candidates, in percent", "candidate", columns, names, cells, notes)


def seeds_text(found: Seeds, *, width: int | None = None) -> str:
    """The mean and the standard deviation over the seeds, of each task and of the average; empty without scores."""
    mean, spread = found.mean(), found.spread()
    if not mean:
        return ""
    scored = found.runs[0].report["scores"]
    written = {name: _written(scored, name) for name in mean}
    cells = tuple(
        (Cell(written[name](value), written[name](spread[name]) if name in spread else ""),)
        for name, value in mean.items()
    )
    title = f"split {scored['split']}: mean over {len(found.runs)} seeds ± standard deviation"
    table = Table(title, "task", ("adapted",), tuple(mean), cells)
    return drawn([table], width=width, stderr=True).rstrip("\n")


def seed_average(run: SeedRun) -> str:
    """One seed's average, in percent where every score is a share; empty without scores."""
    found = run.scores()
    if not found:
        return ""
    return _written(run.report["scores"], AVERAGE)(found[AVERAGE])


def _written(scored: Mapping[str, Any], name: str) -> Callable[[float], str]:
    """How a task's score is written: a share in percent, an error in its own unit; the average if all are shares."""
    rows = [row for row in scored["rows"] if name in (row["task"], AVERAGE)]
    shares = all(METRICS[row["metric"]].percent for row in rows)
    return lambda value: f"{100 * value:.1f}" if shares else f"{value:.3g}"
