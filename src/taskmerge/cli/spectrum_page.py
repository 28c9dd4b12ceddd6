"""A spectrum report as one page for a terminal: the answer, tasks, what lies between them; the rest is in its files."""

from collections.abc import Mapping
from typing import Any

from taskmerge.cli import show


def show_page(document: Mapping[str, Any]) -> None:
    """Prints the page."""
    from taskmerge.reports.render import drawn
    from taskmerge.reports.spectrum_sections import headline
    from taskmerge.reports.spectrum_tables import alignment_table, between_table, group_table, task_table

    show.page([show.folded(headline(document)), ""])
    spaces = document["spaces"]
    tables = [task_table(document, spaces[0])]
    tables += [table for space in spaces if (table := between_table(document, space))]
    tables += [table for make in (alignment_table,) if (table := make(document, spaces[0]))]
    tables += [table for by in ("role",) if (table := group_table(document, spaces[0], by))]
    print(drawn(tables), end="")
