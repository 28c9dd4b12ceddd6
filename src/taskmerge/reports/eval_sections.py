"""The page of an evaluation: which checkpoint is best, how good, against what, how sure; then why."""

from collections.abc import Sequence

from taskmerge.errors import listed
from taskmerge.evaluation.results import from_json
from taskmerge.evaluation.scores import Report
from taskmerge.evaluation.selection import BASE, EXPERTS
from taskmerge.reports.calibration_figures import calibration_figures
from taskmerge.reports.cross_figures import cross_figures
from taskmerge.reports.discrepancy_figures import discrepancy_figures
from taskmerge.reports.eval_figures import score_figures
from taskmerge.reports.feature_figures import feature_figures, kept_features
from taskmerge.reports.figures import Figure
from taskmerge.reports.radar_figures import radar_figures
from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Fact, Facts, Part, Prose, Section
from taskmerge.reports.standings import Lead, Standing, Standings, about, lead, standings
from taskmerge.reports.tables import (
    EMPTY,
    Cell,
    Table,
    checks,
    choices,
    comparisons,
    correlations,
    corruptions,
    cross,
    relative,
    scores,
    written,
)

ANSWER, SCORES = "answer", "scores"
"""Anchors of the answer and of the section of scores, which a comparison of several runs has once for all."""


def sections(run: Run) -> list[Section]:
    """The answer, the scores behind it, and whatever else was measured."""
    report = from_json(run.document, run.name)
    found = [answer(report), score_section(report, radar_figures(run.document)), *_others(report, run)]
    return [section for section in found if section.parts or section.lead]


# --- the answer ------------------------------------------------------------------------------------------------


def answer(report: Report) -> Section:
    """Which model, how good, against what, how sure."""
    found = standings(report)
    parts: list[Part] = []
    if facts := _facts(report, found):
        parts.append(Facts(facts))
    parts += [Prose(text, "warning") for text in (*_missed(report), *report.warnings)]
    if len(found.models) + len(found.references) > 1 and (table := standing_table(report, found)) is not None:
        parts.append(table)
    parts += [Prose(text, "note") for text in report.notes]
    return Section("In short", ANSWER, " ".join(_sentences(report, found)), tuple(parts))


def _sentences(report: Report, found: Standings) -> list[str]:
    """The answer in words."""
    judged = found.models or found.references
    if not judged:
        return ["Nothing was scored on data as it is."]
    best = judged[0]
    where = f"the {best.tasks} task{'s' if best.tasks > 1 else ''} of {report.suite} (split {report.split})"
    rank = f"is the best of {len(found.models)} checkpoints on" if len(found.models) > 1 else "was scored on"
    told = [f"“{best.name}” {rank} {where}{_scored(best, found)}."]
    told += [sentence for sentence in (_against(best, found), _settled(report, found)) if sentence]
    return told


def _scored(best: Standing, found: Standings) -> str:
    if best.value is None:
        kept = "" if best.normalised is None else f", {100 * best.normalised:.1f}% of the experts' scores on average"
        return f": metrics of several units{kept}"
    interval = f"95% interval {number(best.low, found)} to {number(best.high, found)}"
    return f": {number(best.value, found)} on average ({interval}, {best.n:,} items)"


def _against(best: Standing, found: Standings) -> str:
    """What the experts reach, and the base."""
    experts, base = found.reference(EXPERTS), found.reference(BASE)
    told = []
    if experts is not None and best is not experts and best.normalised is not None:
        reach = "" if experts.value is None else f", which reach {number(experts.value, found)},"
        told.append(f"{100 * best.normalised:.1f}% of the tasks' own experts{reach}")
    if base is not None and best is not base and best.value is not None and base.value is not None:
        gap = best.value - base.value
        word = "above" if gap > 0 else "below"
        told.append(f"{points(abs(gap), found)} {word} the base ({number(base.value, found)})")
    return f"That is {' and '.join(told)}." if told else ""


def _settled(report: Report, found: Standings) -> str:
    """How sure the first place is."""
    ahead = _lead(report, found)
    if ahead is None:
        return ""
    gap = -ahead.value if found.lower_is_better else ahead.value
    kind = "paired 95% interval" if ahead.paired else "95% interval, as of independent items,"
    span = f"{kind} {signed(ahead.low, found)} to {signed(ahead.high, found)}"
    end = "." if ahead.settled else ": the two are not told apart."
    return f"It leads the next, “{ahead.other}”, by {points(gap, found)} ({span}){end}"


def _lead(report: Report, found: Standings) -> Lead | None:
    if len(found.models) < 2:
        return None
    return lead(report, found.models[0].name, found.models[1].name)


def _facts(report: Report, found: Standings) -> tuple[Fact, ...]:
    """The numbers of the answer, one a tile."""
    if not found.models:
        return ()
    best, facts = found.models[0], []
    if best.value is not None:
        span = f"{number(best.low, found)} to {number(best.high, found)}, {best.n:,} items"
        facts.append(Fact(number(best.value, found), f"{best.name}: mean of {best.tasks} tasks", span))
    if best.normalised is not None:
        facts.append(Fact(f"{100 * best.normalised:.1f}%", "of the experts' scores", "mean over the tasks"))
    base = found.reference(BASE)
    ahead = lead(report, best.name, BASE) if base is not None else None
    second = _lead(report, found)
    for label, other in (("against the base", ahead), (f"against the next, {second and second.other}", second)):
        if other is not None and best.value is not None:
            facts.append(Fact(signed(other.value, found), label, _span(other, found)))
    if report.checks:
        passed = sum(bool(check["passed"]) for check in report.checks)
        facts.append(Fact(f"{passed} of {len(report.checks)}", "checks passed"))
    return tuple(facts)


def _span(ahead: Lead, found: Standings) -> str:
    span = f"{signed(ahead.low, found)} to {signed(ahead.high, found)}"
    return f"{span}, {'paired' if ahead.paired else 'as of independent items'}"


def _missed(report: Report) -> list[str]:
    names = [
        f"{check['checkpoint']}: {check['task'] or check['metric']}" for check in report.checks if not check["passed"]
    ]
    return [f"{len(names)} of {len(report.checks)} checks missed: {listed(names, 6, plain=True)}"] if names else []


def standing_table(report: Report, found: Standings) -> Table | None:
    """Checkpoints, the best first, then what they are compared with."""
    every = [*found.models, *found.references]
    if not every:
        return None
    names = tuple(own.name for own in every)
    columns, cells = ["mean", "of experts, %", "tasks", "items"], [_standing_cells(own, found) for own in every]
    for key, title, write in ABOUT:
        values = [about(report, name).get(key) for name in names]
        if any(value is not None for value in values):
            columns.append(title)
            cells = [(*row, EMPTY if value is None else Cell(write(value)))
                     for row, value in zip(cells, values, strict=True)]  # fmt: skip
    unit = ", in percent" if found.percent else ""
    return Table(f"Checkpoints, best first{unit}", "checkpoint", tuple(columns), names, tuple(cells))


def _standing_cells(own: Standing, found: Standings) -> tuple[Cell, ...]:
    mean = EMPTY
    if own.value is not None:
        span = f"{plain_number(own.low, found)} to {plain_number(own.high, found)}"
        margin = plain_number(max(own.high - own.value, own.value - own.low), found)
        mean = Cell(plain_number(own.value, found), margin, span)
    kept = EMPTY if own.normalised is None else Cell(f"{100 * own.normalised:.1f}")
    return mean, kept, Cell(str(own.tasks)), Cell(f"{own.n:,}")


ABOUT = (
    ("kind", "kind", str),
    ("needs_task_index", "needs the task", lambda value: "yes" if value else "no"),
    ("stored_bytes", "stored, MB", lambda value: written(value / 1e6)),
    ("data_used", "data used", str),
    ("protocol", "what it has seen", str),
)
"""What a report may say of a checkpoint, the column's title, and how it is written."""


# --- why -------------------------------------------------------------------------------------------------------


def score_section(report: Report, more: Sequence[Figure] = ()) -> Section:
    """The scores themselves: plots (and `more` of them), and the table of tasks and checkpoints."""
    table = scores(report)
    parts: tuple[Part, ...] = (*score_figures(report), *more, *([table] if table else []))
    lead = "Each task's data with its own head; differences smaller than the intervals may be chance."
    return Section("Scores by task", SCORES, lead if parts else "", parts)


def _others(report: Report, run: Run) -> list[Section]:
    """Whatever else was asked for."""
    document = run.document
    groups: tuple[tuple[str, str, str, Sequence[Part | None]], ...] = (
        ("Every expert on every task", "cross",
         "Encoders of experts with heads and data of other tasks: what one task's expert is worth to another.",
         (*cross_figures(document), cross(report), relative(report))),
        ("Against the experts, item by item", "items",
         "Items that an expert has right and a checkpoint wrong, and the other way round.",
         (*discrepancy_figures(document), *comparisons(report))),
        ("Calibration", "calibration", "Whether predictions are as often right as they are confident.",
         calibration_figures(document)),
        ("Features", "features", "Where encoders put a sample of items, flattened to two dimensions.",
         feature_figures(document, kept_features(run.folder, document))),
        ("Corrupted pictures", "corruptions",
         "Means over the tasks on pictures as they are, and as they get when something spoils them.",
         (corruptions(report),)),
        ("Losses without labels", "losses",
         "How losses that need no label follow the true one: a loss that doesn't is no guide for adaptation.",
         correlations(report)),
        ("Choice without labels", "choice", "What a criterion says that never sees a label.", (choices(report),)),
        ("Checks", "checks", "What had to hold, and whether it did.", (checks(report),)),
    )  # fmt: skip
    return [
        Section(title, anchor, lead, own)
        for title, anchor, lead, parts in groups
        if (own := tuple(part for part in parts if part is not None))
    ]


# --- how numbers are written -----------------------------------------------------------------------------------


def plain_number(value: float, found: Standings) -> str:
    """A score without its unit."""
    return f"{100 * value:z.1f}" if found.percent else f"{value:.3g}"


def number(value: float, found: Standings) -> str:
    """A score with its unit."""
    return f"{plain_number(value, found)}%" if found.percent else plain_number(value, found)


def points(value: float, found: Standings) -> str:
    """A difference of scores: of percentages in points."""
    return f"{plain_number(value, found)} points" if found.percent else plain_number(value, found)


def signed(value: float, found: Standings) -> str:
    """A difference with its sign."""
    return f"{100 * value:+.1f}" if found.percent else f"{value:+.3g}"
