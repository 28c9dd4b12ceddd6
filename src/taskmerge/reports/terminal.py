"""A page's answer as a few lines for a terminal."""

from taskmerge.errors import plain
from taskmerge.reports.render import drawn
from taskmerge.reports.sections import Page, Prose
from taskmerge.reports.tables import Table


def summary(page: Page, *, width: int | None = None) -> str:
    """The title, the answer in words, its warnings, and its tables as wide as stderr's terminal is."""
    answer = page.sections[0]
    lines = [plain(page.title), plain(answer.lead)]
    lines += [f"{part.kind}: {plain(part.text)}" for part in answer.parts
              if isinstance(part, Prose) and part.kind == "warning"]  # fmt: skip
    tables = [part for part in answer.parts if isinstance(part, Table)]
    return "\n".join([*lines, *([drawn(tables, width=width, stderr=True)] if tables else [])]).rstrip("\n")
