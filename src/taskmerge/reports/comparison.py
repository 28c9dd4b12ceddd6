"""Several runs against each other: all checkpoints by what they score, then what merging and adapting took."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from taskmerge.evaluation.scores import Report
from taskmerge.reports.eval_sections import answer, number, score_section
from taskmerge.reports.joined import Joined, join
from taskmerge.reports.merge_sections import method_of, options_text
from taskmerge.reports.pilot_figures import pilot_figures, pilot_gains
from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Prose, Section
from taskmerge.reports.standings import Standing, Standings, standings
from taskmerge.reports.tables import EMPTY, Cell, Table, written

APART = "These were scored on other tasks, another split or other items, so they are not compared with those above."

ELSEWHERE = "Other runs were scored on other data; they stand apart below."


def comparison(runs: Sequence[Run]) -> list[Section]:
    """Which checkpoint is best, how good, against what, how sure; the scores behind it; then methods and costs."""
    joined = join(runs)
    found: list[Section] = []
    for place, report in enumerate(joined.reports):
        found += _scored(report, joined, place)
    pilot = _pilot(runs)
    costs = [table for table in (_merges(runs, joined), _adaptations(runs, joined)) if table is not None]
    if not joined.reports:
        told = "None of these runs holds scores: `taskmerge eval` says how good their checkpoints are."
        return [Section("In short", "answer", told, tuple(costs)), *pilot]
    lead = "Scores of merged checkpoints are found by their recipe; what was not evaluated has none."
    return [*found, *pilot, *([Section("What it took", "costs", lead, tuple(costs))] if costs else [])]


def _pilot(runs: Sequence[Run]) -> list[Section]:
    """What heads trained with labels gain, where several runs of them stand beside evaluations of the same merges."""
    documents = {kind: [run.document for run in runs if run.kind == kind] for kind in ("adapt", "eval")}
    figures = pilot_figures(pilot_gains(documents["adapt"], documents["eval"]))
    lead = "Heads trained with labels on merged features, beside the suite's heads on the same: a bound, no result."
    return [Section("What heads could gain", "pilot", lead, tuple(figures))] if figures else []


def _scored(report: Report, joined: Joined, place: int) -> list[Section]:
    """The answer and the scores of what can be compared; `place` counts such groups."""
    first, why = answer(report), score_section(report)
    named = [name for name in standing_names(report) if joined.origins.get(name)]
    origins = Prose(f"From: {'; '.join(f'{name} in {joined.origins[name]}' for name in named)}.")
    first = replace(first, parts=(*first.parts, origins)) if named else first
    if place == 0:
        more = f" {ELSEWHERE}" if len(joined.reports) > 1 else ""
        return [replace(first, lead=f"{first.lead}{more}"), why]
    apart = replace(first, title=f"Apart: {report.suite}, split {report.split}", lead=f"{first.lead} {APART}")
    why = replace(why, title=f"{why.title}: {report.suite}, split {report.split}")
    return [apart.within(f"group-{place + 1}"), why.within(f"group-{place + 1}")]


def standing_names(report: Report) -> list[str]:
    """Checkpoints that are judged, the best first."""
    return [own.name for own in standings(report).models]


def _merges(runs: Sequence[Run], joined: Joined) -> Table | None:
    """What merges took, a row an output."""
    names, cells = [], []
    for run in (run for run in runs if run.kind == "merge"):
        receipt = run.document
        for output in receipt["outputs"]:
            recipe = {**receipt["provenance"]["recipe"], "options": output["options"]}
            names.append(run.name if len(receipt["outputs"]) == 1 else f"{run.name}: {output['path']}")
            cells.append((
                Cell(method_of(receipt["provenance"])), Cell(options_text(output["options"])), _mean(recipe, joined),
                Cell(str(len(receipt["provenance"]["tasks"]))), Cell(written(receipt["seconds"])),
                Cell(f"{receipt['peak_memory'] / 1e6:,.0f}"), Cell(f"{output['bytes'] / 1e6:,.4g}"),
            ))  # fmt: skip
    columns = ("method", "options", "mean score", "experts", "time, s", "peak memory, MB", "written, MB")
    return Table("Merges", "run", columns, tuple(names), tuple(cells)) if names else None


def _adaptations(runs: Sequence[Run], joined: Joined) -> Table | None:
    """What adaptations took, a row a run."""
    chosen = [run for run in runs if run.kind == "adapt"]
    cells = tuple(_adaptation(run.name, run.document, joined) for run in chosen)
    columns = ("method", "mean score", "labels", "updates", "items", "time, s", "peak memory, MB")
    return Table("Adaptations", "run", columns, tuple(run.name for run in chosen), cells) if chosen else None


def _adaptation(name: str, document: Mapping[str, Any], joined: Joined) -> tuple[Cell, ...]:
    own = _standing(name, joined)
    return (
        Cell(document["method"]), EMPTY if own is None else _written(*own),
        Cell("yes" if document["protocol"]["labels"] else "no"), Cell(f"{document['learned']['updates']:,}"),
        Cell(f"{sum(int(task['items']) for task in document['tasks']):,}"),
        Cell(f"{document['timing']['seconds']:,.4g}"), Cell(f"{document['timing']['peak_memory'] / 1e6:,.0f}"),
    )  # fmt: skip


def _mean(recipe: Mapping[str, Any], joined: Joined) -> Cell:
    """The mean of the one checkpoint that a recipe has made, if it was evaluated."""
    names = [own["name"] for report in joined.reports for own in report.checkpoints if own.get("recipe") == recipe]
    own = _standing(names[0], joined) if len(names) == 1 else None
    return EMPTY if own is None else _written(*own)


def _standing(name: str, joined: Joined) -> tuple[Standing, Standings] | None:
    for report in joined.reports:
        found = standings(report)
        own = next((own for own in found.models if own.name == name and own.value is not None), None)
        if own is not None:
            return own, found
    return None


def _written(own: Standing, found: Standings) -> Cell:
    if own.value is None:
        return EMPTY
    return Cell(number(own.value, found), interval=f"{number(own.low, found)} to {number(own.high, found)}")
