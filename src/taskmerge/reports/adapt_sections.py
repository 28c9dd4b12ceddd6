"""The page of an adaptation: what it scores and how sure that is, what it has seen; then how it went."""

from collections.abc import Mapping
from typing import Any

from taskmerge.checkpoint.adapted import is_adapted
from taskmerge.reports.adapt_figures import adapt_figures, read_view
from taskmerge.reports.adapt_tables import candidates_table
from taskmerge.reports.charting import percent
from taskmerge.reports.eval_sections import answer, score_section
from taskmerge.reports.joined import scores_of
from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Fact, Facts, Part, Prose, Section
from taskmerge.reports.tables import EMPTY, NOTHING, Cell, Table, written


def sections(run: Run) -> list[Section]:
    """The answer, the scores behind it, what was learnt from, and how it went."""
    report = scores_of(run)
    found = [_answer(run), *([score_section(report)] if report else []), _protocol(run.document), _course(run)]
    return [section for section in found if section.parts or section.lead]


def _answer(run: Run) -> Section:
    document, report = run.document, scores_of(run)
    labels = "with labels" if document["protocol"]["labels"] else "without a label"
    seen = f"{document['method']}, {labels}: {document['protocol']['words']}."
    cost = Facts((
        Fact(document["method"], "method", labels),
        Fact(f"{document['learned']['updates']:,}", "updates", f"{_items(document):,} items of split "
             f"{document['protocol']['split']}"),
        Fact(f"{written(document['timing']['seconds'])} s", "time",
             f"{document['timing']['peak_memory'] / 1e6:,.0f} MB"),
    ))  # fmt: skip
    told: list[Part] = [Prose(text, "warning") for text in document["warnings"]]
    if report is None:
        return Section("In short", "answer", f"{_unscored(document, run.name)} {seen}", (cost, *told))
    scored = answer(report)
    against = "Base and experts were not evaluated with it: join their evaluation with `report` to compare."
    parts = (*scored.parts[:1], cost, *told, *scored.parts[1:])
    return Section("In short", "answer", f"{scored.lead} {seen} {against}", parts)


def _unscored(document: Mapping[str, Any], name: str) -> str:
    """How good a model is that has no scores by task: what is known of a candidate that was chosen, if anything."""
    command = f"`taskmerge eval experts base {name}`"
    chosen = document.get("chosen") or {"candidate": "", "tried": ()}
    score = next((one["score"] for one in chosen["tried"] if one["name"] == chosen["candidate"]), None)
    if score is None:
        return f"The adapted model was not scored: {command} says how good it is."
    return (
        f"Of {len(chosen['tried'])} candidates {chosen['candidate']} agreed best with the experts and was kept; its "
        f"mean score, looked at afterwards, is {percent(score)}: {command} says more."
    )


def _items(document: Mapping[str, Any]) -> int:
    return sum(int(task["items"]) for task in document["tasks"])


def _protocol(document: Mapping[str, Any]) -> Section:
    """What it has seen, what it was asked, what it ended with."""
    tasks = document["tasks"]
    cells = tuple(
        (
            Cell(f"{task['items']:,}"),
            Cell(f"{task['held_out']:,}"),
            Cell(task["objective"]),
            Cell(f"{task['fingerprint'][:16]}…"),
        )
        for task in tasks
    )
    columns = ("items", "held out", "objective", "fingerprint")
    seen = Table("Items learnt from", "task", columns, tuple(task["name"] for task in tasks), cells)
    asked = _pairs("What was asked", {"method": document["method"], **document["recipe"].get("options", {}),
                                      **_plain(document["parts"])})  # fmt: skip
    parts: list[Part] = [seen, asked, _pairs("What it ended with", _plain(document["learned"]))]
    if document["solved_heads"]:
        parts.append(_solved(document["solved_heads"]))
    if document.get("chosen"):
        parts.append(candidates_table(document["chosen"]))
    if document["stopped"] is not None:
        parts.append(Prose(_stopped(document["stopped"])))
    parts += [Prose(text, "note") for text in document["notes"]]
    return Section("What it has seen and learnt", "protocol", document["protocol"]["words"], tuple(parts))


def _stopped(stopped: Mapping[str, Any]) -> str:
    """Which update was kept, and by what."""
    kept, whole = (f"{100 * stopped[key]:.1f}%" for key in ("agreement", "at_horizon"))
    return (
        f"Update {stopped['update']:,} was kept: there the model agrees with the experts on {kept} of held-out items, "
        f"at the end of the horizon on {whole}. No label was used."
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values one level deep, with names that say where they were."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}: {inner}": own for inner, own in _plain(value).items()}
        elif value is not None:
            found[name] = value
    return found


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    cells = tuple((Cell(_written(value)),) for value in values.values())
    return Table(title, "what", ("value",), tuple(name.replace("_", " ") for name in values), cells)


def _written(value: object) -> str:
    """A value as a reader writes it, not as Python does."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _solved(heads: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("loss", "start", "iterations", "pull")
    cells = tuple(
        tuple(EMPTY if own[key] is None else Cell(f"{own[key]:.4g}") for key in columns) for own in heads.values()
    )
    return Table("Heads that were solved for", "task", columns, tuple(heads), cells)


def _course(run: Run) -> Section:
    """Curves, masks and coefficients, from the folder."""
    if run.folder is None or not is_adapted(run.folder):
        told = "The report was read without its folder: name the folder to see curves, masks and coefficients."
        return Section("How it went", "course", told)
    view = read_view(run.folder, run.document)
    figures = adapt_figures(run.document, view)
    notes = [Prose(f"{text[0].upper()}{text[1:]}.") for text in view.lacking]
    return Section("How it went", "course", "From trace.jsonl, masks and coefficients in the folder.",
                   (*figures, *notes))  # fmt: skip
