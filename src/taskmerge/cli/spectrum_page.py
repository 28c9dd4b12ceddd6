"""A spectrum report as one page for a terminal: the answer, tasks, what lies between them; the rest is in its files."""

from collections.abc import Mapping
from typing import Any

from taskmerge.cli import show


def show_page(document: Mapping[str, Any]) -> None:
    """Prints the page."""
    from taskmerge.reports.recommendation_section import command_lines, recommendation_section
    from taskmerge.reports.render import drawn
    from taskmerge.reports.spectrum_sections import headline
    from taskmerge.reports.spectrum_tables import alignment_table, between_table, group_table, task_table

    show.page([show.folded(headline(document)), ""])
    spaces = document["spaces"]
    tables = [task_table(document, spaces[0])]
    tables += [table for space in spaces if (table := between_table(document, space))]
    tables += [table for make in (alignment_table,) if (table := make(document, spaces[0]))]
    tables += [table for by in ("role",) if (table := group_table(document, spaces[0], by))]
    if "sweeps" in document:
        from taskmerge.reports.sweep_tables import sweep_tables

        tables += sweep_tables(document)
    print(drawn(tables), end="")
    advice = recommendation_section(document)
    if advice is not None:
        found = document["recommendation"]
        show.page(["", show.folded(advice.lead), *(show.folded(text) for text in found["ground"][1:])])
        show.page(["", *command_lines(found)] if found["arguments"] else [])  # never folded: a shell reads it
