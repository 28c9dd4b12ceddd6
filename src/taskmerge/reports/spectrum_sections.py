"""The page of a spectrum: how alike tasks are and how low their rank is, then spectra, overlaps, roles and depth."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from taskmerge.reports.recommendation_section import recommendation_section
from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Fact, Facts, Part, Prose, Section
from taskmerge.reports.spectrum_figures import spectrum_figures
from taskmerge.reports.spectrum_tables import (
    ABOUT,
    alignment_table,
    between_table,
    group_table,
    paired,
    task_table,
    times_chance,
    whole,
)
from taskmerge.reports.sweep_sections import sweep_sections
from taskmerge.reports.tables import written

Document = Mapping[str, Any]
CHANCE = (
    "Every number between tasks stands beside what chance gives: the mean over random subspaces, directions or signs "
    "of the same shapes. An overlap of 0.1 is much in a space of a thousand dimensions and nothing in one of ten."
)


def sections(run: Run) -> list[Section]:
    """The answer, then why."""
    return spectrum_sections(run.document)


def spectrum_sections(document: Document) -> list[Section]:
    """All sections of a report.json of `taskmerge spectrum`."""
    figures = {figure.name: figure for figure in spectrum_figures(document)}
    found = [_answer(document)]
    if (advice := recommendation_section(document)) is not None:
        found.append(advice)
    for space in document["spaces"]:
        own = [figure for name, figure in figures.items() if name.endswith(space)]
        tables = [task_table(document, space), between_table(document, space), alignment_table(document, space)]
        tables += [group_table(document, space, by) for by in ("role", "depth")]
        parts: tuple[Part, ...] = (*own, *(table for table in tables if table is not None))
        found.append(Section(f"About {ABOUT[space]}", space, _lead(document, space), parts))
    return [*found, *sweep_sections(document), _settings(document)]


def headline(document: Document) -> str:
    """The answer in two sentences."""
    space = document["spaces"][0]
    group, tasks = whole(document, space), len(document["tasks"])
    rank = fmean(group["energy_rank"])
    experts = "1 expert" if tasks == 1 else f"{tasks} experts"
    first = (
        f"{experts}, {group['matrices']} matrices: their {ABOUT[space]} hold 95% of their energy in "
        f"{100 * rank:.0f}% of the full rank."
    )
    return f"{first} {_lead(document, space)}".strip()


def _lead(document: Document, space: str) -> str:
    """How far apart tasks are, against chance."""
    group = whole(document, space)
    if group["overlap_left"] is None:
        return ""
    left, right, conflict = (_ratio(group, key) for key in ("overlap_left", "overlap_right", "sign_conflict"))
    cosines = [value for value, _ in paired(group["cosine"], "cosine") if value is not None]
    cosine = f"cosine {fmean(cosines):z.2f} on average, " if cosines else ""
    return (
        f"Between tasks: {cosine}leading left spaces overlap {left} times as much as chance gives, right spaces "
        f"{right} times; signs conflict {conflict} times as often."
    )


def _ratio(group: Document, key: str) -> str:
    ratio = times_chance(paired(group[key], key))
    return "–" if ratio is None else written(ratio, 2)


def _answer(document: Document) -> Section:
    space = document["spaces"][0]
    group = whole(document, space)
    facts = [
        Fact(
            str(len(document["tasks"])), "experts", f"{group['matrices']} matrices, {group['parameters']:,} parameters"
        ),
        Fact(f"{100 * fmean(group['energy_rank']):.0f}%", "of the full rank", "holds 95% of the energy"),
    ]
    for key, label in (("overlap_left", "overlap of left spaces"), ("interference", "interference")):
        if group[key] is not None:
            facts.append(Fact(f"{_ratio(group, key)}×", label, "times what chance gives"))
    told: list[Part] = [Prose(text, "warning") for text in document["warnings"]]
    return Section("In short", "answer", headline(document), (Facts(tuple(facts)), *told, Prose(CHANCE, "note")))


def _settings(document: Document) -> Section:
    """What was read, and how."""
    where = f"base {document['base']}" if document["base"] else "no base"
    experts = "; ".join(f"{one['name']}: {one['path']} ({one['kind']})" for one in document["experts"])
    merged = f" Held against {document['merged']}." if document["merged"] else ""
    settings = document["settings"]
    told = f"Compared at rank {settings['rank']}; q, k and v {settings['qkv']}."
    notes = tuple(Prose(text, "note") for text in document["notes"])
    return Section("What was read", "inputs", f"{told} {where}.{merged}", (Prose(experts), *notes))
